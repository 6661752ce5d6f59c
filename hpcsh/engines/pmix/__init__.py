"""The pmix engine: a DVM of PRRTE's on a Slurm allocation, and parallel programs launched into it."""

from hpcsh.engines.pmix.engine import Pmix

__all__ = ["Pmix"]
