"""Compressed backbones: pruning with SparseGPT, int8 and nf4, and where the results are kept.

Only `mops_fl.compression.spec` is imported here; it needs no torch.
"""

from mops_fl.compression.spec import Compression, parse

__all__ = ["Compression", "parse"]
