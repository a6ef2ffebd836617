"""Conversion of an attribution graph's arrays to the records of files and pages."""

from collections.abc import Callable, Sequence

import numpy as np

from lit_sparse.attribution import AttributionGraph, EdgeReason, HeadShares, Kind, Source, WhyOpen
from lit_sparse.records.feature_examples import Examples
from lit_sparse.records.graph import GraphFile, Link, Metadata, Node, QKTracing
from lit_sparse.records.graph_nodes import cumulative, error_node, feature_node, head_node, logit_node, token_node
from lit_sparse.records.graph_summary import GraphSummary

_LABEL_TOKENS = 3


def graph_file(
    graph: AttributionGraph,
    whole: AttributionGraph,
    *,
    text: Callable[[int], str],
    prompt: str,
    scan: str,
    slug: str,
    node_share: float,
    shares: HeadShares,
    reasons: WhyOpen,
    summary: GraphSummary,
    examples: Examples | None,
) -> GraphFile:
    """The file of a pruned graph.

    Args:
        whole: the graph before pruning.
        text: gives a token's text by its id.
        scan: name of the transcoder; slug: name of the graph.
        node_share: share of the node influence to which the graph was pruned.
        shares: shares of the whole graph's heads.
        reasons: reasons why edges of head nodes are open, for the heads that were explained.
        examples: contexts of features, from which they get labels.
    """
    nodes, target = graph.nodes, int(graph.logit_ids[0])
    is_logit = nodes.kind == Kind.LOGIT
    share_so_far = np.zeros(len(nodes))
    share_so_far[~is_logit] = cumulative(
        graph.influence[~is_logit].astype(np.float64),
        whole.influence[whole.nodes.kind != Kind.LOGIT].astype(np.float64),
    )
    # Viewers begin with the nodes within this share, and show tokens and logits in any case.
    reached = share_so_far[nodes.kind != Kind.EMBEDDING].max(initial=node_share)
    probability = dict(zip(graph.logit_ids.tolist(), graph.probabilities.tolist(), strict=True))
    records: list[Node] = []
    for place, (kind, layer, position, index) in enumerate(nodes.keys()):
        extra = {"own_influence": float(graph.influence[place]), "influence": float(share_so_far[place])}
        value = float(nodes.value[place])
        if kind == Kind.EMBEDDING:
            node = token_node(index, position, clerp=f'Token "{text(index)}"', **extra)
        elif kind == Kind.FEATURE:
            label = _label(examples, layer, index)
            node = feature_node(layer, index, position, activation=value, clerp=label, **extra)
        elif kind == Kind.ERROR:
            node = error_node(layer, position, clerp=f"Error of MLP {layer}", **extra)
        elif kind == Kind.HEAD:
            edges = reasons.edges.get(place)
            node = head_node(
                layer,
                index,
                position,
                clerp=f"Head {layer}.{index}",
                activation=value,
                head_share=float(shares.attribution[layer, index]),
                attention=_attention(graph, layer, index, position),
                qk_tracing_results=_tracing(edges[0], graph.layers) if edges else None,
                qk_note=None if edges else (reasons.refused or "not among the heads whose edges were explained"),
                **extra,
            )
        else:
            node = logit_node(
                graph.layers, index, position, token=text(index), probability=probability[index],
                target=index == target, activation=value,
            )  # fmt: skip
        records.append(node)
    columns = (graph.edges.source.tolist(), graph.edges.target.tolist(), graph.edges.weight.tolist())
    return GraphFile(
        metadata=Metadata(
            slug=slug,
            scan=scan,
            prompt_tokens=[text(token) for token in graph.ids.tolist()],
            prompt=prompt,
            node_threshold=float(reached),
            summary=summary,
        ),
        nodes=records,
        links=[
            Link(source=records[source].node_id, target=records[target].node_id, weight=weight)
            for source, target, weight in zip(*columns, strict=True)
        ],
    )


def _attention(graph: AttributionGraph, layer: int, head: int, query: int) -> list[tuple[int, float]]:
    weights = graph.attention[layer][head, query]
    keys = np.flatnonzero(weights)
    return [(int(key), float(weights[key])) for key in keys[np.argsort(-weights[keys], kind="stable")]]


def _tracing(reason: EdgeReason, layers: int) -> QKTracing:
    gate = reason.gate

    def name(source: Source) -> str:
        return _node_id(source, layers)

    return QKTracing(
        pair_wise_contributors=[(name(query), name(key), value) for query, key, value in reason.pairs],
        top_q_marginal_contributors=[(name(source), value) for source, value in reason.queries],
        top_k_marginal_contributors=[(name(source), value) for source, value in reason.keys],
        key=reason.key,
        attention_logit=reason.logit,
        remainder=reason.pairs_rest,
        gate_logit=None if gate is None else gate.z,
        gate_cutoff=None if gate is None else gate.cutoff,
        gate_sharpness=None if gate is None else gate.sharpness,
    )


def _node_id(source: Source, layers: int) -> str:
    """The id that the file's constructors give to a node."""
    kind, layer, position, index = source.kind, source.layer, source.position, source.index
    if kind == Kind.EMBEDDING:
        return token_node(index, position).node_id
    if kind == Kind.FEATURE:
        return feature_node(layer, index, position).node_id
    if kind == Kind.ERROR:
        return error_node(layer, position).node_id
    assert kind == Kind.HEAD
    return head_node(layer, index, position).node_id


def _label(examples: Examples | None, layer: int, feature: int) -> str:
    """The tokens at which a feature was strongest, without repetition."""
    found = () if examples is None else examples.features.get(f"{layer}_{feature}", ())
    peaks: Sequence[str] = list(dict.fromkeys(one.tokens[one.peak].strip() for one in found))
    return " / ".join([peak for peak in peaks if peak][:_LABEL_TOKENS])
