"""Engines: what stands behind the verbs."""
