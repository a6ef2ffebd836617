"""Sparse-gated attention for any transformers causal language model. Independent of Lightning."""

from lit_sparse.attention.bridge import attention_modules, dense, desparsify, gates_of, sparsify
from lit_sparse.attention.edge_edits import Edit
from lit_sparse.attention.edges import EdgeCounts, ReferencePattern, edge_counts, reference_pattern
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
from lit_sparse.attention.patterns import attention_patterns

__all__ = [
    "GATES",
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
    "ReferencePattern",
    "attention_modules",
    "attention_patterns",
    "build_gate",
    "dense",
    "desparsify",
    "edge_counts",
    "edit",
    "gates_of",
    "open_edges",
    "reference_pattern",
    "register_gate",
    "sparsify",
]
