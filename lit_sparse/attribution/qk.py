"""Reasons why an attention edge is open: the nodes at the query's and at the key's position that make its logit.

With the norm before the attention frozen, the logit of edge (t, s) of a head is a sum over pairs of a writer at t and a
writer at s: scaling x (W_Q what the one wrote) . (W_K what the other wrote), each rotated for its position. The
marginal of a writer is its sum over all writers of the other side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from lit_sparse.anatomy.linear import LinearStack
from lit_sparse.attribution.graph import AttributionGraph, Kind
from lit_sparse.attribution.replacement import Replacement
from lit_sparse.attribution.scores import GateReading, LayerScores
from lit_sparse.attribution.writers import Writers
from lit_sparse.transcoders import Transcoder


@dataclass(frozen=True, order=True)
class Source:
    """A node, identified as in `NodeTable`. A pruned graph need not have it."""

    kind: Kind
    layer: int
    position: int
    index: int


@dataclass(frozen=True)
class EdgeReason:
    """Reason why one attention edge is open.

    Attributes:
        key: position of the edge's key.
        weight: weight of the key's value.
        logit: the scaled query-key product, before a soft cap.
        pairs: the strongest (query-side node, key-side node, addition to the logit), by magnitude.
        queries, keys: the strongest marginals of either side.
        pairs_rest, queries_rest, keys_rest: the rest of the logit beside those listed, with biases.
        gate: reading of the edge's gate; None in a layer that keeps all its edges.
    """

    key: int
    weight: float
    logit: float
    pairs: list[tuple[Source, Source, float]]
    queries: list[tuple[Source, float]]
    keys: list[tuple[Source, float]]
    pairs_rest: float
    queries_rest: float
    keys_rest: float
    gate: GateReading | None


@dataclass(frozen=True)
class WhyOpen:
    """Reasons why the edges of some head nodes are open.

    Attributes:
        edges: for each explained head node, its edges of largest weight, largest first.
        refused: the reason why there are none, if the family normalises its queries and keys.
    """

    edges: dict[int, list[EdgeReason]]
    refused: str | None = None


def why_open(
    model: PreTrainedModel,
    transcoder: Transcoder,
    graph: AttributionGraph,
    heads: Sequence[int],
    *,
    most_keys: int = 3,
    most_sources: int = 10,
) -> WhyOpen:
    """Explains the attention of some head nodes.

    Time: a layer that has one of the heads costs as much as D prompts through its query and key projections.

    Args:
        graph: the graph of this model and transcoder (`build_graph`), whole or pruned.
        heads: indices of head nodes in the graph's table.
        most_keys: number of edges explained for a head, those of largest weight.
        most_sources: number of pairs listed, and of nodes listed on each side.

    Raises:
        ValueError: a node is not a head.
    """
    nodes = graph.nodes
    if wrong := [node for node in heads if nodes.kind[node] != Kind.HEAD]:
        raise ValueError(f"only heads have attention edges to explain; node {wrong[0]} is none")
    by_layer: dict[int, list[int]] = {}
    for node in heads:
        by_layer.setdefault(int(nodes.layer[node]), []).append(node)
    edges: dict[int, list[EdgeReason]] = {}
    with LinearStack(model) as stack, torch.no_grad():
        replacement = Replacement(stack, transcoder, torch.from_numpy(graph.ids)[None].to(model.device))
        writers = Writers(replacement)
        for layer in range(max(by_layer, default=-1) + 1):
            if layer in by_layer:
                try:
                    scores = LayerScores(replacement, layer)
                except ValueError as error:
                    return WhyOpen({}, str(error))
                for node in by_layer[layer]:
                    head, query = int(nodes.index[node]), int(nodes.position[node])
                    weights = replacement.weights[layer][head, query]
                    keys = weights.topk(min(most_keys, int((weights != 0).sum()))).indices.tolist()
                    edges[node] = [_reason(writers, scores, head, query, key, most_sources) for key in keys]
            writers.add_attention(layer)
            writers.add_mlp(layer)
    return WhyOpen(edges)


def _reason(writers: Writers, scores: LayerScores, head: int, query: int, key: int, most: int) -> EdgeReason:
    query_rows, key_rows, table = scores.pairwise(writers, head, query, key)
    at_query, at_key = _source_of(writers, query_rows), _source_of(writers, key_rows)
    logit = float(scores.logits[head, query, key])
    among_nodes = table[1:, 1:]
    columns = among_nodes.shape[1]
    pairs = [
        (at_query(place // columns), at_key(place % columns), value)
        for place, value in _strongest(among_nodes.flatten(), most)
    ]
    queries = [(at_query(place), value) for place, value in _strongest(table.sum(1)[1:], most)]
    keys = [(at_key(place), value) for place, value in _strongest(table.sum(0)[1:], most)]
    return EdgeReason(
        key=key,
        weight=float(scores.replacement.weights[scores.layer][head, query, key]),
        logit=logit,
        pairs=pairs,
        queries=queries,
        keys=keys,
        pairs_rest=logit - sum(value for *_, value in pairs),
        queries_rest=logit - sum(value for _, value in queries),
        keys_rest=logit - sum(value for _, value in keys),
        gate=scores.gate(head, query, key),
    )


def _source_of(writers: Writers, rows: slice) -> Callable[[int], Source]:
    """Function from indices among the rows, without the first row of biases, to nodes."""
    found = writers.node_of_row[rows][1:]
    columns = writers.nodes.where(found)

    def source(place: int) -> Source:
        return Source(
            Kind(int(columns.kind[place])),
            int(columns.layer[place]),
            int(columns.position[place]),
            int(columns.index[place]),
        )

    return source


def _strongest(values: Float[Tensor, " item"], most: int) -> list[tuple[int, float]]:
    """Indices and values of the items of largest magnitude that are not 0."""
    places = values.abs().topk(min(most, len(values))).indices.tolist()
    return [(place, float(values[place])) for place in places if values[place] != 0]
