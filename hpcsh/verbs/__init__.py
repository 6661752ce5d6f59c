"""The verbs: what a user says. One typed function each; parser, help and completion come from it."""
