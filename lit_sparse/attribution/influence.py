"""Influence of nodes and edges on the explained logits, and the graph of those that matter.

The logits start with their probabilities as influence. Every node passes its influence on to its sources, in proportion
to the absolute weights of its incoming edges. So a node's influence is the sum over all paths from it to the logits of
the product of shares along the path ("Circuit Tracing", transformer-circuits.pub 2025, appendix on pruning: the rows of
(I - A)^-1 for the matrix A of shares). A graph has no cycles, so one pass from the logits down is exact.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from lit_sparse.attribution.graph import AttributionGraph, Edges, Kind, NodeTable


def node_influence(
    nodes: NodeTable, edges: Edges, probabilities: Float[np.ndarray, " logit"]
) -> Float[np.ndarray, " node"]:
    """Influence of each node. The influences of the logits are their probabilities, scaled to sum to 1."""
    return _influences(nodes, edges, probabilities)[0]


def edge_influence(
    nodes: NodeTable, edges: Edges, probabilities: Float[np.ndarray, " logit"]
) -> Float[np.ndarray, " edge"]:
    """Influence of each edge: the part of its target's influence that it passes on to its source."""
    return _influences(nodes, edges, probabilities)[1]


def prune(graph: AttributionGraph, node_share: float = 0.8, edge_share: float = 0.98) -> AttributionGraph:
    """Prunes a graph to the fewest nodes and edges that have a share of the influence.

    First it keeps the fewest nodes with at least `node_share` of the summed node influence. Then it keeps, of the edges
    between them, the fewest with `edge_share` of the edge influence. Then it drops nodes without outgoing edges, and
    features and heads without incoming edges. Embeddings and logits always stay. Influences stay those of the whole
    graph; biases and dropped edges make up the rest of values.

    Raises:
        ValueError: a share is outside (0, 1].
    """
    for name, share in (("node_share", node_share), ("edge_share", edge_share)):
        if not 0 < share <= 1:
            raise ValueError(f"{name} is a share of the influence, in (0, 1], got {share}")
    nodes, edges = graph.nodes, graph.edges
    fixed = (nodes.kind == Kind.EMBEDDING) | (nodes.kind == Kind.LOGIT)
    kept = fixed | _strongest(np.where(nodes.kind == Kind.LOGIT, 0.0, graph.influence), node_share)
    edges = edges.where(kept[edges.source] & kept[edges.target])
    edges = edges.where(_strongest(edge_influence(nodes, edges, graph.probabilities), edge_share))
    needs_input = (nodes.kind == Kind.FEATURE) | (nodes.kind == Kind.HEAD)
    while True:
        is_source, is_target = np.zeros(len(nodes), dtype=bool), np.zeros(len(nodes), dtype=bool)
        is_source[edges.source] = True
        is_target[edges.target] = True
        still = kept & (fixed | (is_source & (is_target | ~needs_input)))
        if (still == kept).all():
            break
        kept = still
        edges = edges.where(kept[edges.source] & kept[edges.target])
    return _restricted(graph, kept, edges)


def _influences(
    nodes: NodeTable, edges: Edges, probabilities: Float[np.ndarray, " logit"]
) -> tuple[Float[np.ndarray, " node"], Float[np.ndarray, " edge"]]:
    size = np.abs(edges.weight)
    total = np.bincount(edges.target, weights=size, minlength=len(nodes))
    influence = np.zeros(len(nodes))
    influence[len(nodes) - len(probabilities) :] = probabilities / probabilities.sum(dtype=np.float64)
    handed_on = np.zeros(len(edges), dtype=np.float32)
    stages = nodes.stages()
    starts = np.searchsorted(stages[edges.target], np.arange(stages.max() + 2))
    for first, last in reversed(list(pairwise(starts))):  # edges are ordered by stage
        target = edges.target[first:last]
        per_weight = np.divide(influence, total, out=np.zeros(len(nodes)), where=total > 0)
        handed_on[first:last] = size[first:last] * per_weight[target]
        influence += np.bincount(edges.source[first:last], handed_on[first:last], minlength=len(nodes))
    return influence.astype(np.float32), handed_on


def _strongest(scores: Float[np.ndarray, " item"], share: float) -> Bool[np.ndarray, " item"]:
    """The fewest items whose scores sum to at least a share of all."""
    order = np.argsort(-scores, kind="stable")
    kept = np.zeros(len(scores), dtype=bool)
    kept[order[: smallest_count(scores[order], share)]] = True
    return kept


def smallest_count(falling: Float[np.ndarray, " item"], share: float) -> int:
    """Number of first items, largest first, that sum to at least a share of all; 0 if all are 0."""
    cumulative = falling.cumsum(dtype=np.float64)
    if len(cumulative) == 0 or cumulative[-1] <= 0:
        return 0
    # A rounding error must not ask for one more item than the share needs.
    return int(np.searchsorted(cumulative, share * cumulative[-1] * (1 - 1e-12)) + 1)


def _restricted(graph: AttributionGraph, kept: Bool[np.ndarray, " node"], edges: Edges) -> AttributionGraph:
    place: Int[np.ndarray, " node"] = np.cumsum(kept, dtype=np.int32) - 1
    return replace(
        graph,
        nodes=graph.nodes.where(kept),
        edges=Edges(place[edges.source], place[edges.target], edges.weight),
        bias=graph.bias[kept],
        influence=graph.influence[kept],
    )
