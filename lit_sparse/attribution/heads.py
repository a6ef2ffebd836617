"""Number of attention heads that an answer needs (arXiv 2512.05865: attention attribution with cross-layer
transcoders)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lit_sparse.attribution.graph import AttributionGraph, Kind
from lit_sparse.attribution.influence import smallest_count


@dataclass(frozen=True, eq=False)
class HeadShares:
    """Numbers of heads that reach a share of a graph's attention attribution.

    Attributes:
        share: the share that the counted heads reach.
        by_attribution: number of heads by |attribution|, summed over query positions.
        by_influence: number of heads by their nodes' influence on the logits, summed over query positions.
        by_connection: number of heads for the attribution between two positions. For every pair of different positions
            it is the smallest number by |attribution| of their edges. Pairs are averaged in proportion to their summed
            |attribution|.
        attribution, influence: (L, H) each head's part of the sum over all heads; all 0 if no head has any.
    """

    share: float
    by_attribution: int
    by_influence: int
    by_connection: float
    attribution: Float[np.ndarray, "layer head"]
    influence: Float[np.ndarray, "layer head"]


def heads_for(graph: AttributionGraph, share: float = 0.8) -> HeadShares:
    """The smallest numbers of heads that together have a share of a graph's attention attribution. The graph must be
    whole, not pruned. Heads whose edges are all closed have no attribution.

    Raises:
        ValueError: the share is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is a part of the attribution, in (0, 1], got {share}")
    attribution = np.abs(graph.head_attribution).sum(-1, dtype=np.float64)
    influence = np.zeros_like(attribution)
    nodes, is_head = graph.nodes, graph.nodes.kind == Kind.HEAD
    np.add.at(influence, (nodes.layer[is_head], nodes.index[is_head]), graph.influence[is_head])
    return HeadShares(
        share,
        by_attribution=_count(attribution, share),
        by_influence=_count(influence, share),
        by_connection=_per_connection(graph.edge_attribution, share),
        attribution=_shares(attribution),
        influence=_shares(influence),
    )


def _count(parts: Float[np.ndarray, "*head"], share: float) -> int:
    return smallest_count(-np.sort(-parts, axis=None), share)


def _per_connection(edges: list[Float[np.ndarray, "head query key"]], share: float) -> float:
    size = np.abs(np.concatenate(edges))  # heads of all layers
    size = size[:, ~np.eye(size.shape[1], dtype=bool)].astype(np.float64)
    total = size.sum(0)
    counts = [_count(size[:, pair], share) for pair in np.flatnonzero(total)]
    return float(np.average(counts, weights=total[total > 0])) if counts else 0.0


def _shares(parts: Float[np.ndarray, "layer head"]) -> Float[np.ndarray, "layer head"]:
    return parts / parts.sum() if parts.any() else parts
