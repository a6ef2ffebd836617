"""Circuits of single sentences, as attention edges (layer, head, query, key)."""

from lit_sparse.circuits.attention_edges.edges import EdgeList
from lit_sparse.circuits.attention_edges.goals import Difference, Distribution, Goal, Probability
from lit_sparse.circuits.attention_edges.mask import Learning, learn_mask
from lit_sparse.circuits.attention_edges.minimal import Ablations, minimal, shortest_prefix
from lit_sparse.circuits.attention_edges.passes import Passes, means
from lit_sparse.circuits.attention_edges.search import Found, find
from lit_sparse.circuits.attention_edges.sentence import SentenceSettings, sentence_circuit

__all__ = [
    "Ablations",
    "Difference",
    "Distribution",
    "EdgeList",
    "Found",
    "Goal",
    "Learning",
    "Passes",
    "Probability",
    "SentenceSettings",
    "find",
    "learn_mask",
    "means",
    "minimal",
    "sentence_circuit",
    "shortest_prefix",
]
