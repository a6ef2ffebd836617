"""lit_sparse: post-train any causal language model to sparse attention, edge by edge, at the same loss."""

from lit_sparse.attention import Gate, GateConfig, desparsify, register_gate, sparsify
from lit_sparse.export import load_sparse
from lit_sparse.module import SparseAttentionModule

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
