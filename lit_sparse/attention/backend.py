"""The interface that attention operators plug into, and the choice among them.

An operator is a function of the signature `AttentionOperator`. `reference` is the oracle; a faster one is added
as a member of `Backend` with a line in `_operator` and a reason in `unsupported` where it does not apply.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_sparse.attention.gates import Gate


class GatedAttention(NamedTuple):
    """What an operator returns.

    output: (B, T, H, Dv), in the values' dtype.
    edges: (B, H, 3) float32: expected open edges sum_ij sigmoid(z_ij) (differentiable), edges that were open in
        this pass, and edges that the mask allows.
    """

    output: Float[Tensor, "batch query head value_dim"]
    edges: Float[Tensor, "batch head 3"]


@runtime_checkable  # so that beartype can check annotations in the tests
class AttentionOperator(Protocol):
    def __call__(
        self,
        query: Float[Tensor, "batch head query dim"],
        key: Float[Tensor, "batch kv_head key dim"],
        value: Float[Tensor, "batch kv_head key value_dim"],
        mask: Bool[Tensor, "#batch 1 query key"],
        gate: Gate,
        *,
        scaling: float,
        softcap: float | None,
        dropout: float,
        sample: bool,
    ) -> GatedAttention: ...


class Backend(StrEnum):
    """Implementations of gated attention."""

    AUTO = "auto"
    """The fastest one that supports the case."""
    REFERENCE = "reference"
    """Plain torch, any dtype and device, differentiable by autograd. O(T S) memory. The oracle."""
    FUSED = "fused"
    """Plain torch with a hand-written backward that keeps two T x S tensors instead of ten."""


def unsupported(backend: Backend, gate: Gate, *, softcap: float | None, dropout: float) -> str | None:
    """Why a backend cannot serve a case, or None if it can."""
    if backend is Backend.FUSED:
        if type(gate).forward is not Gate.forward:
            return f"gate family {gate.family!r} overrides forward() and has no affine form"
        if gate.config.normalisation != "all":
            return "normalisation over open edges"
        if softcap is not None:
            return "soft-capped logits"
        if dropout > 0.0:
            return "attention dropout"
    return None


def resolve(backend: Backend | str, gate: Gate, *, softcap: float | None, dropout: float) -> AttentionOperator:
    """The operator that serves a case.

    Raises:
        ValueError: unknown backend, or one asked for by name that does not support the case.
    """
    try:
        backend = Backend(backend)
    except ValueError:
        raise ValueError(f"unknown attention backend {backend!r}; known: {', '.join(Backend)}") from None
    if backend is Backend.AUTO:
        supported = unsupported(Backend.FUSED, gate, softcap=softcap, dropout=dropout) is None
        backend = Backend.FUSED if supported else Backend.REFERENCE
    elif reason := unsupported(backend, gate, softcap=softcap, dropout=dropout):
        raise ValueError(f"attention backend {str(backend)!r} does not support {reason}; use 'auto'")
    return _operator(backend)


def _operator(backend: Backend) -> Callable[..., GatedAttention]:
    from lit_sparse.attention import fused, reference

    return {Backend.REFERENCE: reference.gated_attention, Backend.FUSED: fused.gated_attention}[backend]


def edge_counts(
    expected: Float[Tensor, "batch head"], is_open: Bool[Tensor, "batch head query key"], mask: Bool[Tensor, "..."]
) -> Float[Tensor, "batch head 3"]:
    """The three counts of `GatedAttention.edges`."""
    batch, heads = expected.shape
    opened = is_open.sum(dim=(-2, -1)).to(expected.dtype)
    allowed = mask.sum(dim=(-2, -1)).to(expected.dtype).expand(batch, heads)
    return torch.stack([expected, opened, allowed], dim=-1)
