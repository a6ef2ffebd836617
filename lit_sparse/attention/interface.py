"""Interface of attention operators: their inputs and their results.

Formulas are those of `operator.py`; `backends.py` chooses the operator for a case.
"""

from enum import StrEnum
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_sparse.attention.gates import Gate
from lit_sparse.attention.masks import EdgeMask


class GatedAttention(NamedTuple):
    """Result of an operator.

    output: (B, T, H, Dv), in the values' dtype.
    edges: (B, H, 3) float32: expected open edges sum_ij sigmoid(z_ij) (differentiable), edges that were open in
        this pass, and edges that the mask allows.
    """

    output: Float[Tensor, "batch query head value_dim"]
    edges: Float[Tensor, "batch head 3"]


@runtime_checkable  # so that beartype can check annotations in the tests
class AttentionOperator(Protocol):
    """Signature of attention operators."""

    def __call__(
        self,
        query: Float[Tensor, "batch head query dim"],
        key: Float[Tensor, "batch kv_head key dim"],
        value: Float[Tensor, "batch kv_head key value_dim"],
        mask: EdgeMask,
        gate: Gate,
        *,
        scaling: float,
        softcap: float | None,
        dropout: float,
        seeds: Int[Tensor, " batch"] | None,
    ) -> GatedAttention:
        """Gated attention. Gates are drawn with the samples' seeds (`noise.py`, training); None makes them
        deterministic."""


class Backend(StrEnum):
    """Implementations of gated attention."""

    AUTO = "auto"
    """The fastest one that supports the case."""
    REFERENCE = "reference"
    """Plain torch, any dtype and device, differentiable by autograd. O(T S) memory. The oracle."""
    BLOCKWISE = "blockwise"
    """One block of queries at a time, O(T + S) memory, any device; on a CPU with a C compiler, kernels in C."""
    TRITON = "triton"
    """Triton kernels in the manner of FlashAttention-2, for GPUs."""


class Case(NamedTuple):
    """Properties of a call that decide which backends support it."""

    gate: Gate
    softcap: float | None = None
    dropout: float = 0.0
    device: torch.device | None = None  # not known before a model is moved to it
    holes: bool = False
    dtype: torch.dtype | None = None
    dim: int = 0  # head dimension, the larger of keys' and values'


class Formula(NamedTuple):
    """Coefficients of the gate logits z = sharpness * (s - normalised * lse + offset - cutoff), s = scaling q.k.

    sharpness: 0-d, at least float32; kernels load it.
    renormalise: True to divide by the open edges' mass instead of all keys'.
    scaling: positive.
    softcap: s is softcap * tanh(scaling q . k / softcap); 0 means none.
    """

    sharpness: Float[Tensor, ""]
    normalised: bool
    renormalise: bool
    scaling: float
    softcap: float


class Forward(NamedTuple):
    """Result of a backend's `forward`. Counts and row statistics have the accumulation type (at least float32).

    output: (B, T, H, Dv) contiguous, in the values' dtype.
    edges: (B, H, 3) expected, open, allowed edges.
    lse: (B, H, T) log-sum-exp over the allowed keys, +inf for a row without any.
    mass: (B, H, T) the open edges' share of the softmax, 1 where no edge is open; (B, H, 0) unless `renormalise`.
    """

    output: Float[Tensor, "batch query head value_dim"]
    edges: Float[Tensor, "batch head 3"]
    lse: Float[Tensor, "batch head query"]
    mass: Float[Tensor, "batch head renormalised_rows"]


class Gradients(NamedTuple):
    """Result of a backend's `backward`. Gradients of query, key and value have the inputs' dtypes."""

    query: Float[Tensor, "batch head query dim"]
    key: Float[Tensor, "batch kv_head key dim"]
    value: Float[Tensor, "batch kv_head key value_dim"]
    cutoff: Float[Tensor, " head"]
    offset: Float[Tensor, "batch kv_head key"] | None


def formula_of(gate: Gate, scaling: float, softcap: float | None) -> Formula:
    """Coefficients of a layer's gate logits; a softcap of None means none."""
    form = gate.form()
    return Formula(form.sharpness, form.normalised, gate.config.normalisation == "open", scaling, softcap or 0.0)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over inputs of a dtype: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def three_counts(
    expected: Float[Tensor, "batch head"], is_open: Bool[Tensor, "batch head query key"], mask: EdgeMask
) -> Float[Tensor, "batch head 3"]:
    """The three counts of `GatedAttention.edges`."""
    batch, heads = expected.shape
    opened = is_open.sum(dim=(-2, -1)).to(expected.dtype)
    allowed = mask.allowed().sum(-1).to(expected.dtype).view(-1, 1).expand(batch, heads)
    return torch.stack([expected, opened, allowed], dim=-1)
