"""hpcsh: the shell for the place where Slurm meets Kubernetes."""

__version__ = "0.1.0"
