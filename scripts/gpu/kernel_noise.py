"""The noise as the GPU kernels draw it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lit_sparse.attention.gpu import noise


@triton.jit
def _kernel(out, seeds, first_row, first_key, heads, SIZE: tl.constexpr):
    batch, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    row = tl.arange(0, SIZE)
    u = noise.uniform(tl.load(seeds + batch), head, first_row + row, first_key, SIZE, SIZE)
    tl.store(out + (tl.program_id(0) * SIZE + row[:, None]) * SIZE + noise.columns(SIZE)[None, :], u)


def kernel_uniform(seeds: Tensor, heads: int, first_row: int, first_key: int) -> Tensor:
    """(B, H, 64, 64) numbers of a block of rows and keys."""
    out = torch.empty(len(seeds), heads, 64, 64, device=seeds.device)
    _kernel[(len(seeds) * heads,)](out, seeds, first_row, first_key, heads, 64)
    return out
