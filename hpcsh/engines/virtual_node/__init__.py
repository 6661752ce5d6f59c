"""The virtual_node engine: pods, programs and batch scripts become Slurm jobs."""

from hpcsh.engines.virtual_node.engine import VirtualNode

__all__ = ["VirtualNode"]
