"""The row kernels in C for CPUs, compiled on first use; without a compiler the torch ones serve (`row_kernels.py`)."""

from lit_sparse.attention.native.kernels import backward, forward, open_values
from lit_sparse.attention.native.library import library

__all__ = ["backward", "forward", "library", "open_values"]
