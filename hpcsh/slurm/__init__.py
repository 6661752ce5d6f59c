"""Slurm: its commands as a client, its states, its options and its batch scripts."""
