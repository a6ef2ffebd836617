"""The choice among attention operators.

An operator is a function of the signature `AttentionOperator`. `reference` is the oracle; the others share one
differentiable operator (`operator.py`). A new one needs a member of `Backend`, and a reason in `unsupported` for every
case that it does not support.
"""

import os
from functools import partial

import torch

from lit_sparse.attention import operator, reference
from lit_sparse.attention.gates import Gate
from lit_sparse.attention.interface import AttentionOperator, Backend, Case


def unsupported(backend: Backend, case: Case) -> str | None:
    """Reason why a backend does not support a case, or None if it does."""
    if backend in (Backend.BLOCKWISE, Backend.TRITON):
        if type(case.gate).forward is not Gate.forward:
            return f"gate family {case.gate.family!r}, which overrides forward() and has no affine form"
        if case.dropout > 0.0:
            return "attention dropout"
    if backend is Backend.TRITON:
        from lit_sparse.attention import gpu

        if case.holes:
            return "masks in which a query's keys are not contiguous"
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
        ValueError: the backend is unknown, or does not support the case.
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
    if backend is Backend.REFERENCE:
        return reference.gated_attention
    return partial(operator.gated_attention, backend=str(backend))
