"""The session host: the process that keeps sessions open while front ends come and go."""
