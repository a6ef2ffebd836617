"""Per-token cross-entropy and KL divergence from the base model, over a large vocabulary.

Plain autograd would hold half a dozen (tokens, vocabulary) tensors in float32. Here the forward keeps the two inputs
in their own dtype and a few numbers a token; both gradients have closed forms,

    d CE / d logits = softmax(logits) - onehot(label)        d KL(base || model) / d logits = softmax(logits) - base

Forward and backward are one operator each, `torch.ops.lit_sparse.token_losses` and `token_losses_backward`: one Triton
kernel on an NVIDIA GPU (`fused`), blocks of positions elsewhere (`blocks`). The logits themselves are still written to
memory; computing them from hidden states inside the operator would save that.
"""

from types import ModuleType
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_sparse.attention import gpu
from lit_sparse.objective import blocks

IGNORED = blocks.IGNORED


class TokenLosses(NamedTuple):
    """Losses of each position in nats, 0 where it is not scored. All but `base_ce` are differentiable in the model's
    logits."""

    ce: Float[Tensor, "batch query"]
    base_ce: Float[Tensor, "batch query"]
    kl: Float[Tensor, "batch query"]
    scored: Bool[Tensor, "batch query"]

    def tokens(self) -> Int[Tensor, ""]:
        """The number of scored positions, on their device."""
        return self.scored.sum()


def token_losses(
    logits: Float[Tensor, "batch query vocab"],
    base_logits: Float[Tensor, "batch query vocab"],
    labels: Int[Tensor, "batch query"],
) -> TokenLosses:
    """Losses at the positions whose label is not -100.

    Args:
        labels: already shifted, so that `labels[:, t]` is the token to predict at position t.
    """
    ce, base_ce, kl = _TokenLosses.apply(logits, base_logits, labels)  # type: ignore[no-untyped-call]
    return TokenLosses(ce, base_ce, kl, labels != IGNORED)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, base_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ce, base_ce, kl, lse, base_lse = torch.ops.lit_sparse.token_losses(logits, base_logits, labels)
        ctx.save_for_backward(logits, base_logits, labels, lse, base_lse)
        ctx.mark_non_differentiable(base_ce)
        return ce, base_ce, kl

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_ce: Tensor, _: Tensor, d_kl: Tensor) -> tuple[Tensor, None, None]:
        return torch.ops.lit_sparse.token_losses_backward(*ctx.saved_tensors, d_ce, d_kl), None, None


def _implementation(logits: Tensor, base_logits: Tensor) -> ModuleType:
    wide = torch.promote_types(logits.dtype, base_logits.dtype) == torch.float64
    if logits.is_cuda and not wide and gpu.available():
        from lit_sparse.objective import fused

        return fused
    return blocks


@torch.library.custom_op("lit_sparse::token_losses", mutates_args=())
def _forward(logits: Tensor, base_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    losses: blocks.Forward = _implementation(logits, base_logits).forward(logits, base_logits, labels)
    return losses


@_forward.register_fake
def _(logits: Tensor, base_logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    wide = torch.promote_types(logits.dtype, torch.float32)
    return tuple(logits.new_empty(labels.shape, dtype=wide) for _ in range(5))


@torch.library.custom_op("lit_sparse::token_losses_backward", mutates_args=())
def _backward(
    logits: Tensor,
    base_logits: Tensor,
    labels: Tensor,
    lse: Tensor,
    base_lse: Tensor,
    d_ce: Tensor,
    d_kl: Tensor,
) -> Tensor:
    backward = _implementation(logits, base_logits).backward
    gradient: Tensor = backward(logits, base_logits, labels, lse, base_lse, d_ce, d_kl)
    return gradient


@_backward.register_fake
def _(
    logits: Tensor, base_logits: Tensor, labels: Tensor, lse: Tensor, base_lse: Tensor, d_ce: Tensor, d_kl: Tensor
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)
