"""Compressed backbones: pruning with SparseGPT, int8 and nf4, and where the results are kept."""
