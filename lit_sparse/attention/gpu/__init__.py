"""The gated-attention operator in Triton, for NVIDIA GPUs from compute capability 8.0. Importable without Triton."""

import importlib.util
from types import ModuleType
from typing import Any

from lit_sparse.attention.interface import Forward, Gradients

MAX_DIM = 256


def available() -> bool:
    """Whether Triton is installed; does not import it."""
    return importlib.util.find_spec("triton") is not None


def forward(*args: Any) -> Forward:
    """See `launch.forward`.

    Raises:
        ImportError: Triton is not installed.
    """
    return _launch().forward(*args)


def backward(*args: Any) -> Gradients:
    """See `launch.backward`."""
    return _launch().backward(*args)


def _launch() -> ModuleType:
    if not available():
        raise ImportError("the GPU kernels of gated attention need Triton: pip install triton")
    from lit_sparse.attention.gpu import launch

    return launch
