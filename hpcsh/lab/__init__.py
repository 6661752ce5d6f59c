"""The lab: a real Slurm, PRRTE and registry cluster on one machine, in namespaces."""
