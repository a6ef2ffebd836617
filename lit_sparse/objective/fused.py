"""Losses of `losses.py` in Triton. One program per position reads both models' logits once."""

import torch
import triton
from torch import Tensor

from lit_sparse.objective.blocks import IGNORED, Forward
from lit_sparse.objective.fused_kernels import backward_kernel, forward_kernel

_BLOCK = 2048  # logits of each model at a time: 8 of each a thread, 64 registers, no spills on sm_90
_WARPS = 8


def forward(logits: Tensor, base_logits: Tensor, labels: Tensor) -> Forward:
    """`blocks.forward` in Triton, for 16 or 32 bit floats."""
    x, y = _rows(logits), _rows(base_logits)
    ce, base_ce, kl, lse, base_lse = (torch.empty(labels.shape, dtype=torch.float32, device=x.device) for _ in range(5))
    with torch.cuda.device_of(x):
        forward_kernel[(len(x),)](
            x,
            y,
            labels.contiguous(),
            ce,
            base_ce,
            kl,
            lse,
            base_lse,
            x.stride(0),
            y.stride(0),
            **_options(x),
        )
    return ce, base_ce, kl, lse, base_lse


def backward(
    logits: Tensor, base_logits: Tensor, labels: Tensor, lse: Tensor, base_lse: Tensor, d_ce: Tensor, d_kl: Tensor
) -> Tensor:
    """`blocks.backward` in Triton."""
    x, y = _rows(logits), _rows(base_logits)
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(x):
        backward_kernel[(len(x),)](
            x,
            y,
            labels.contiguous(),
            lse,
            base_lse,
            d_ce.contiguous(),
            d_kl.contiguous(),
            gradient,
            x.stride(0),
            y.stride(0),
            **_options(x),
        )
    return gradient


def _options(rows: Tensor) -> dict[str, int | bool]:
    block = min(_BLOCK, max(16, int(triton.next_power_of_2(rows.shape[1]))))
    return {
        "VOCABULARY": rows.shape[1],
        "BLOCK": block,
        "IGNORED": IGNORED,
        "num_warps": _WARPS,
        "enable_fp_fusion": True,
    }


def _rows(logits: Tensor) -> Tensor:
    rows = logits.flatten(0, 1)
    return rows if rows.stride(1) == 1 else rows.contiguous()
