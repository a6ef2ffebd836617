"""lit_sparse: post-train any causal language model to sparse attention, edge by edge, at the same loss."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lit_sparse.attention import Gate, GateConfig, desparsify, register_gate, sparsify
from lit_sparse.models import auto  # noqa: F401 - registers sparse folders with transformers

if TYPE_CHECKING:
    from lit_sparse.models.sparse_folder import load_sparse
    from lit_sparse.training.module import SparseAttentionModule

__version__ = "0.1.0"

__all__ = [
    "Gate",
    "GateConfig",
    "SparseAttentionModule",
    "desparsify",
    "load_sparse",
    "register_gate",
    "sparsify",
]

_TRAINING = {"load_sparse": "lit_sparse.models.sparse_folder", "SparseAttentionModule": "lit_sparse.training.module"}


def __getattr__(name: str) -> Any:
    """What needs Lightning and the data's libraries is imported when it is asked for; attention needs neither."""
    if name not in _TRAINING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_TRAINING[name]), name)
