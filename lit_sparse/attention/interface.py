"""The interface that attention operators plug into, and the choice among them.

An operator is a function of the signature `AttentionOperator`. `reference` is the oracle; the others share one
differentiable operator (`operator.py`). A new one is a member of `Backend` and a reason in `unsupported` where it does
not apply.
"""

import os
from enum import StrEnum
from functools import partial
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


def unsupported(backend: Backend, case: Case) -> str | None:
    """Why a backend cannot serve a case, or None if it can."""
    if backend in (Backend.BLOCKWISE, Backend.TRITON):
        if type(case.gate).forward is not Gate.forward:
            return f"gate family {case.gate.family!r}, which overrides forward() and has no affine form"
        if case.dropout > 0.0:
            return "attention dropout"
    if backend is Backend.TRITON:
        from lit_sparse.attention import gpu

        if case.holes:
            return "masks in which a query's keys are no contiguous run"
        if case.dtype is torch.float64:
            return "float64"
        if case.dim > gpu.MAX_DIM:
            return f"head dimensions above {gpu.MAX_DIM}, here {case.dim}"
        if not gpu.available():
            return "a machine without Triton (pip install 'lit_sparse[triton]')"
        if case.device is not None and case.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return f"device {case.device.type!r}"
    return None


def resolve(backend: Backend | str, case: Case) -> AttentionOperator:
    """The operator that serves a case.

    Raises:
        ValueError: unknown backend, or one asked for by name that does not support the case.
    """
    try:
        backend = Backend(backend)
    except ValueError:
        raise ValueError(f"unknown attention backend {backend!r}; known: {', '.join(Backend)}") from None
    if backend is Backend.AUTO:
        fastest = [Backend.TRITON] if case.device is not None and case.device.type == "cuda" else []
        backend = next(
            (fast for fast in (*fastest, Backend.BLOCKWISE) if unsupported(fast, case) is None), Backend.REFERENCE
        )
    elif reason := unsupported(backend, case):
        raise ValueError(f"attention backend {str(backend)!r} does not support {reason}; use 'auto'")
    return _operator(backend)


def _operator(backend: Backend) -> AttentionOperator:
    from lit_sparse.attention import operator, reference

    if backend is Backend.REFERENCE:
        return reference.gated_attention
    return partial(operator.gated_attention, backend=str(backend))


def three_counts(
    expected: Float[Tensor, "batch head"], is_open: Bool[Tensor, "batch head query key"], mask: EdgeMask
) -> Float[Tensor, "batch head 3"]:
    """The three counts of `GatedAttention.edges`."""
    batch, heads = expected.shape
    opened = is_open.sum(dim=(-2, -1)).to(expected.dtype)
    allowed = mask.allowed().sum(-1).to(expected.dtype).view(-1, 1).expand(batch, heads)
    return torch.stack([expected, opened, allowed], dim=-1)
