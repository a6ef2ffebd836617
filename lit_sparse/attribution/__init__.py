"""Attribution graphs: the direct effects from which a model's next token results. Independent of training."""

from lit_sparse.attribution.build import build_graph
from lit_sparse.attribution.graph import AttributionGraph, Edges, Kind, NodeTable
from lit_sparse.attribution.heads import HeadShares, heads_for
from lit_sparse.attribution.influence import prune
from lit_sparse.attribution.qk import EdgeReason, Source, WhyOpen, why_open
from lit_sparse.attribution.replacement import Replacement

__all__ = [
    "AttributionGraph",
    "EdgeReason",
    "Edges",
    "HeadShares",
    "Kind",
    "NodeTable",
    "Replacement",
    "Source",
    "WhyOpen",
    "build_graph",
    "heads_for",
    "prune",
    "why_open",
]
