"""Per-token cross-entropy and KL divergence from the base model, over a large vocabulary.

Plain autograd would hold half a dozen (tokens, vocabulary) tensors in float32. Here the forward keeps the two inputs
in their own dtype and one number a token; both gradients have closed forms,

    d CE / d logits = softmax(logits) - onehot(label)        d KL(base || model) / d logits = softmax(logits) - base
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100
_CHUNK = 2**21  # logits at a time: 8 MB of float32, which allocators reuse and caches nearly hold


class TokenLosses(NamedTuple):
    """One number a scored token, (N,): in nats, differentiable in the model's logits except `base_ce`."""

    ce: Float[Tensor, " token"]
    base_ce: Float[Tensor, " token"]
    kl: Float[Tensor, " token"]


def token_losses(
    logits: Float[Tensor, "batch query vocab"],
    base_logits: Float[Tensor, "batch query vocab"],
    labels: Int[Tensor, "batch query"],
) -> TokenLosses:
    """Losses at the positions whose label is not -100.

    Args:
        labels: already shifted: `labels[:, t]` is the token to predict at position t.
    """
    scored = labels != IGNORED
    ce, kl, base_ce = _TokenLosses.apply(logits[scored], base_logits[scored], labels[scored])
    return TokenLosses(ce, base_ce, kl)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, base_logits, labels):
        wide = torch.promote_types(logits.dtype, torch.float32)
        ce, kl, base_ce, normaliser, base_normaliser = (logits.new_empty(len(labels), dtype=wide) for _ in range(5))
        for rows in _chunks(logits):
            x, y = logits[rows].to(wide), base_logits[rows].to(wide)
            normaliser[rows] = x.logsumexp(-1)
            base_normaliser[rows] = y.logsumexp(-1)
            label = labels[rows, None]
            ce[rows] = normaliser[rows] - x.gather(-1, label).squeeze(-1)
            base_ce[rows] = base_normaliser[rows] - y.gather(-1, label).squeeze(-1)
            base = torch.exp(y - base_normaliser[rows, None])
            # sum p_base (log p_base - log p): both normalisers are constants of the row, and sum p_base = 1
            kl[rows] = base.mul_(y - x).sum(-1) - base_normaliser[rows] + normaliser[rows]
        ctx.save_for_backward(logits, base_logits, labels, normaliser, base_normaliser)
        ctx.mark_non_differentiable(base_ce)
        return ce, kl, base_ce

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_ce, d_kl, _):
        logits, base_logits, labels, normaliser, base_normaliser = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for rows in _chunks(logits):
            x = logits[rows].to(normaliser.dtype)
            step = (x - normaliser[rows, None]).exp_().mul_((d_ce[rows] + d_kl[rows])[:, None])
            step.scatter_add_(-1, labels[rows, None], -d_ce[rows, None])
            y = base_logits[rows].to(normaliser.dtype)
            step.addcmul_((y - base_normaliser[rows, None]).exp_(), d_kl[rows, None], value=-1)
            gradient[rows] = step.to(gradient.dtype)
        return gradient, None, None


def _chunks(logits: Tensor) -> Iterator[slice]:
    rows = max(1, _CHUNK // logits.shape[-1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))
