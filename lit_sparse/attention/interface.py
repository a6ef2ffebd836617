"""What attention operators are given and what they return: the interface that they plug into.

Formulas are those of `operator.py`; which operator serves a case is chosen in `backends.py`.
"""

from enum import StrEnum
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_sparse.attention.gates import Gate
from lit_sparse.attention.masks import EdgeMask


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
        mask: EdgeMask,
        gate: Gate,
        *,
        scaling: float,
        softcap: float | None,
        dropout: float,
        seeds: Int[Tensor, " batch"] | None,
    ) -> GatedAttention:
        """Gates are drawn with the samples' seeds (`noise.py`, training), or deterministic where these are None."""


class Backend(StrEnum):
    """Implementations of gated attention."""

    AUTO = "auto"
    """The fastest one that supports the case."""
    REFERENCE = "reference"
    """Plain torch, any dtype and device, differentiable by autograd. O(T S) memory. The oracle."""
    BLOCKWISE = "blockwise"
    """A block of queries at a time, O(T + S) memory, any device; on a CPU with a C compiler, kernels in C."""
    TRITON = "triton"
    """Triton kernels in the manner of FlashAttention-2, for GPUs."""


class Case(NamedTuple):
    """What decides which backends can serve."""

    gate: Gate
    softcap: float | None = None
    dropout: float = 0.0
    device: torch.device | None = None  # not known before a model is moved to it
    holes: bool = False
    dtype: torch.dtype | None = None
    dim: int = 0  # of a head, the larger of keys' and values'


class Formula(NamedTuple):
    """What is computed, beside the inputs: z = sharpness * (s - normalised * lse + offset - cutoff), s = scaling q.k.

    sharpness: 0-d, at least float32; kernels load it.
    renormalise: divide by the open edges' mass instead of all keys'.
    scaling: positive.
    softcap: s is softcap * tanh(scaling q . k / softcap); 0 for none.
    """

    sharpness: Float[Tensor, ""]
    normalised: bool
    renormalise: bool
    scaling: float
    softcap: float


class Forward(NamedTuple):
    """What a backend's `forward` returns, counts and row statistics in the accumulation type (at least float32).

    output: (B, T, H, Dv) contiguous, in the values' dtype.
    edges: (B, H, 3) expected, open, allowed edges.
    lse: (B, H, T) log-sum-exp over the allowed keys, +inf for a row without any.
    mass: (B, H, T) the open edges' share of the softmax, 1 where nothing is open; (B, H, 0) unless `renormalise`.
    """

    output: Float[Tensor, "batch query head value_dim"]
    edges: Float[Tensor, "batch head 3"]
    lse: Float[Tensor, "batch head query"]
    mass: Float[Tensor, "batch head renormalised_rows"]


class Gradients(NamedTuple):
    """What a backend's `backward` returns: inputs' dtypes for query, key and value."""

    query: Float[Tensor, "batch head query dim"]
    key: Float[Tensor, "batch kv_head key dim"]
    value: Float[Tensor, "batch kv_head key value_dim"]
    cutoff: Float[Tensor, " head"]
    offset: Float[Tensor, "batch kv_head key"] | None


def formula_of(gate: Gate, scaling: float, softcap: float | None) -> Formula:
    form = gate.form()
    return Formula(form.sharpness, form.normalised, gate.config.normalisation == "open", scaling, softcap or 0.0)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def three_counts(
    expected: Float[Tensor, "batch head"], is_open: Bool[Tensor, "batch head query key"], mask: EdgeMask
) -> Float[Tensor, "batch head 3"]:
    """The three counts of `GatedAttention.edges`."""
    batch, heads = expected.shape
    opened = is_open.sum(dim=(-2, -1)).to(expected.dtype)
    allowed = mask.allowed().sum(-1).to(expected.dtype).view(-1, 1).expand(batch, heads)
    return torch.stack([expected, opened, allowed], dim=-1)
