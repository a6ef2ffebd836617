"""Paths back from the answer along chosen edges (see `anatomy.reach`), on plain arrays without a model."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int

from lit_sparse.records.trace import TraceEdges

NEVER = np.iinfo(np.int64).max


def connected(edges: TraceEdges, layers: int, positions: int) -> tuple[Bool[np.ndarray, " edge"], np.ndarray]:
    """Masks of the edges that lie on a path to the answer, and of the tokens (position,) that reach it that way."""
    seen = np.zeros(positions, dtype=bool)
    seen[-1] = True
    kept = np.zeros(len(edges), dtype=bool)
    for places in _by_layer(edges, layers):
        kept[places] = seen[edges.query[places]]
        used = places[kept[places]]
        seen[edges.key[used]] = True
    return kept, seen


def needed(edges: TraceEdges, layers: int, positions: int) -> Int[np.ndarray, " position"]:
    """Number of first edges that each token needs to reach the answer.

    It is 0 for the last position, and NEVER for a token that does not reach the answer along all edges. A token's first
    path is the widest one: its last edge in the order comes as early as possible (the bottleneck path problem, Pollack
    1960).
    """
    cost = np.full(positions, NEVER)
    cost[-1] = 0
    for places in _by_layer(edges, layers):
        candidate = np.maximum(cost[edges.query[places]], places + 1)
        before = cost.copy()
        np.minimum.at(before, edges.key[places], candidate)
        cost = before
    return cost


def shortest_path(edges: TraceEdges, layers: int, positions: int, token: int) -> list[int] | None:
    """The path of fewest edges from a token to the answer, as indices of edges from the token on. Among several it is
    the one whose edges near the token come earlier in the order. None if there is none."""
    hops = np.full(positions, NEVER)
    hops[-1] = 0
    steps: list[dict[int, int]] = []  # per layer from the last: position -> the edge by which to leave it
    for places in _by_layer(edges, layers):
        far = hops[edges.query[places]]
        candidate = np.where(far == NEVER, NEVER, far + 1)
        order = np.lexsort((places, candidate))
        keys, first = np.unique(edges.key[places][order], return_index=True)
        best, edge = candidate[order][first], places[order][first]
        closer = best < hops[keys]
        hops = hops.copy()
        hops[keys[closer]] = best[closer]
        steps.append(dict(zip(keys[closer].tolist(), edge[closer].tolist(), strict=True)))
    if hops[token] == NEVER:
        return None
    path, at = [], token
    for step in reversed(steps):
        if at in step:
            path.append(step[at])
            at = int(edges.query[step[at]])
    return path


def _by_layer(edges: TraceEdges, layers: int) -> Iterator[Int[np.ndarray, " some"]]:
    """Indices of each layer's edges in rising order, the last layer first."""
    order = np.argsort(edges.layer, kind="stable")
    bounds = np.searchsorted(edges.layer[order], np.arange(layers + 1))
    for layer in reversed(range(layers)):
        yield order[bounds[layer] : bounds[layer + 1]]
