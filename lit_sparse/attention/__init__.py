"""Sparse-gated attention for any transformers causal language model. Independent of Lightning."""

from lit_sparse.attention.bridge import attention_modules, dense, desparsify, gates_of, sparsify
from lit_sparse.attention.edge_edits import Edit
from lit_sparse.attention.edges import AttentionPattern, EdgeCounts, attention_pattern, edge_counts
from lit_sparse.attention.edit import edit
from lit_sparse.attention.gates import (
    GATES,
    Contribution,
    Gate,
    GateConfig,
    GateForm,
    Logit,
    Probability,
    build_gate,
    register_gate,
)
from lit_sparse.attention.guard import DenseAttentionError
from lit_sparse.attention.interface import Backend, GatedAttention
from lit_sparse.attention.open_edges import OpenEdges, open_edges

__all__ = [
    "GATES",
    "AttentionPattern",
    "Backend",
    "Contribution",
    "DenseAttentionError",
    "EdgeCounts",
    "Edit",
    "Gate",
    "GateConfig",
    "GateForm",
    "GatedAttention",
    "Logit",
    "OpenEdges",
    "Probability",
    "attention_modules",
    "attention_pattern",
    "build_gate",
    "dense",
    "desparsify",
    "edge_counts",
    "edit",
    "gates_of",
    "open_edges",
    "register_gate",
    "sparsify",
]
