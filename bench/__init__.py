"""Benchmarks: hpcsh beside the raw tool, over the same transport, in one run."""
