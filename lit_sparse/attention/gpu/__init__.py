"""The gated-attention operator in Triton, for NVIDIA GPUs from compute capability 8.0. Importable without Triton."""

import importlib.util
from types import ModuleType
from typing import Any

from lit_sparse.attention.interface import Forward, Gradients

MAX_DIM = 256


def available() -> bool:
    """True if Triton is installed. It is not imported."""
    return importlib.util.find_spec("triton") is not None


def forward(*args: Any) -> Forward:
    """Forward pass; see `launch.forward`.

    Raises:
        ImportError: Triton is not installed.
    """
    result: Forward = _launch().forward(*args)
    return result


def backward(*args: Any) -> Gradients:
    """Backward pass; see `launch.backward`."""
    result: Gradients = _launch().backward(*args)
    return result


def _launch() -> ModuleType:
    if not available():
        raise ImportError("the GPU kernels of gated attention need Triton: pip install triton")
    from lit_sparse.attention.gpu import launch

    return launch
