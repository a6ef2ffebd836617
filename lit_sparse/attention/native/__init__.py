"""Row kernels in C for CPUs, compiled on first use. Without a compiler the torch kernels run (`row_kernels.py`)."""

from lit_sparse.attention.native.build import library
from lit_sparse.attention.native.kernels import backward, decode, forward, open_values, reads

__all__ = ["backward", "decode", "forward", "library", "open_values", "reads"]
