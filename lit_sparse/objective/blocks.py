"""Losses of `losses.py` in plain PyTorch, one block of scored positions at a time, on any device and in any dtype."""

from collections.abc import Iterator

import torch
from torch import Tensor

IGNORED = -100
_BLOCK = 2**21  # logits at a time: 8 MB of float32, which allocators reuse and caches nearly hold

Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def forward(logits: Tensor, base_logits: Tensor, labels: Tensor) -> Forward:
    """CE, base CE, KL and both models' log-sum-exp (B, T), at least float32; 0 at ignored positions."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    results = [logits.new_zeros(labels.numel(), dtype=wide) for _ in range(5)]
    ce, base_ce, kl, lse, base_lse = results
    rows, base_rows, label = logits.flatten(0, 1), base_logits.flatten(0, 1), labels.flatten()
    for scored in _blocks(rows, label):
        x, y, token = rows[scored].to(wide), base_rows[scored].to(wide), label[scored, None]
        normaliser, base_normaliser = x.logsumexp(-1), y.logsumexp(-1)
        lse[scored], base_lse[scored] = normaliser, base_normaliser
        ce[scored] = normaliser - x.gather(-1, token).squeeze(-1)
        base_ce[scored] = base_normaliser - y.gather(-1, token).squeeze(-1)
        base = torch.exp(y - base_normaliser[:, None])
        # sum p_base (log p_base - log p): both normalisers are constants of the row, and sum p_base = 1
        kl[scored] = base.mul_(y - x).sum(-1) - base_normaliser + normaliser
    ce, base_ce, kl, lse, base_lse = (result.view(labels.shape) for result in results)
    return ce, base_ce, kl, lse, base_lse


def backward(
    logits: Tensor, base_logits: Tensor, labels: Tensor, lse: Tensor, base_lse: Tensor, d_ce: Tensor, d_kl: Tensor
) -> Tensor:
    """The gradient in the logits, in their dtype; 0 at ignored positions."""
    rows, base_rows, label = logits.flatten(0, 1), base_logits.flatten(0, 1), labels.flatten()
    lse, base_lse, d_ce, d_kl = (x.reshape(-1, 1) for x in (lse, base_lse, d_ce, d_kl))
    gradient = torch.zeros_like(rows, memory_format=torch.contiguous_format)
    for scored in _blocks(rows, label):
        x, y = rows[scored].to(lse.dtype), base_rows[scored].to(lse.dtype)
        step = (x - lse[scored]).exp_().mul_(d_ce[scored] + d_kl[scored])
        step.scatter_add_(-1, label[scored, None], -d_ce[scored])
        step.addcmul_((y - base_lse[scored]).exp_(), d_kl[scored], value=-1)
        gradient[scored] = step.to(gradient.dtype)
    return gradient.view(logits.shape)


def _blocks(rows: Tensor, label: Tensor) -> Iterator[slice | Tensor]:
    """Scored rows. If all rows are scored these are slices, which copy nothing."""
    size = max(1, _BLOCK // rows.shape[-1])
    scored = (label != IGNORED).nonzero().squeeze(-1)
    if len(scored) == len(label):
        yield from (slice(start, start + size) for start in range(0, len(label), size))
    else:
        yield from scored.split(size)
