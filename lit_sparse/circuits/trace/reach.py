"""What can flow where: walking open edges back from the answer. Plain arrays, no model.

The residual stream and the MLPs keep a position; only an edge moves something from its key's position to its query's.
The state before layer 0 at a position is its input token, the answer is read at the last position after the last layer.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from lit_sparse.report.trace_record import TraceEdges

NEVER = np.iinfo(np.int64).max


def reachable(
    weights: list[Float[np.ndarray, "head query key"]],
) -> Bool[np.ndarray, "layer_and_answer position"]:
    """Row l: the positions whose residual stream before layer l is seen, in value flow, by the answer (row L)."""
    positions = weights[0].shape[-1]
    seen = np.zeros((len(weights) + 1, positions), dtype=bool)
    seen[-1, -1] = True
    for layer in reversed(range(len(weights))):
        is_open = (weights[layer] != 0).any(0)
        seen[layer] = seen[layer + 1] | is_open[seen[layer + 1]].any(0)
    return seen


def connected(edges: TraceEdges, layers: int, positions: int) -> tuple[Bool[np.ndarray, " edge"], np.ndarray]:
    """Which of some edges lie on a walk back from the answer along them, and which tokens (position,) it ends at."""
    seen = np.zeros(positions, dtype=bool)
    seen[-1] = True
    kept = np.zeros(len(edges), dtype=bool)
    for places in _by_layer(edges, layers):
        kept[places] = seen[edges.query[places]]
        used = places[kept[places]]
        seen[edges.key[used]] = True
    return kept, seen


def needed(edges: TraceEdges, layers: int, positions: int) -> Int[np.ndarray, " position"]:
    """How many of the strongest edges (the first ones) have to be there until each token reaches the answer.

    0 for the last position, NEVER for a token that does not reach along all of them. A token's strongest path is the
    widest one: its weakest edge is as strong as can be (the bottleneck path problem, Pollack 1960).
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
    """The path of fewest edges from a token to the answer, as places of edges from the token on; of several the one
    whose edges are stronger at its token's end. None if there is none."""
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
    """Places of each layer's edges in rising order, the last layer first."""
    order = np.argsort(edges.layer, kind="stable")
    bounds = np.searchsorted(edges.layer[order], np.arange(layers + 1))
    for layer in reversed(range(layers)):
        yield order[bounds[layer] : bounds[layer + 1]]
