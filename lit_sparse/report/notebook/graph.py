"""Attribution graphs that are small enough for a notebook."""

from collections.abc import Sequence

from lit_sparse.common.formatting import count
from lit_sparse.records.graph import LOGIT, TOKEN, GraphFile, QParams

BUDGET = 2_000_000  # characters of JSON
_FEWER = 0.7


def small_graphs(graphs: Sequence[GraphFile], budget: int = BUDGET) -> tuple[Sequence[GraphFile], str]:
    """The graphs with as many of their most influential nodes as are within `budget` characters of JSON together, and
    a sentence that says what is left out; empty where nothing is."""
    most = max(len(graph.nodes) for graph in graphs)
    shown = list(graphs)
    while most > 1 and sum(len(graph.model_dump_json()) for graph in shown) > budget:
        most = int(most * _FEWER)
        shown = [most_influential(graph, most) for graph in graphs]
    if most == max(len(graph.nodes) for graph in graphs):
        return graphs, ""
    counts = " and ".join(
        f"{count(len(few.nodes))} of {count(len(graph.nodes))} nodes, "
        f"{count(len(few.links))} of {count(len(graph.links))} links"
        for few, graph in zip(shown, graphs, strict=True)
    )
    return shown, f"The graph is too large for a notebook. The most influential nodes are shown: {counts}."


def most_influential(graph: GraphFile, most: int) -> GraphFile:
    """The tokens, the logits and the `most` most influential other nodes, with the links between them.

    Cumulative influence orders the nodes, as viewers prune by it; nodes without any come last.
    """
    ends = [node for node in graph.nodes if node.feature_type in (TOKEN, LOGIT)]
    others = [node for node in graph.nodes if node.feature_type not in (TOKEN, LOGIT)]
    others.sort(key=lambda node: float("inf") if node.influence is None else node.influence)
    kept = {node.node_id for node in [*ends, *others[:most]]}
    return GraphFile(
        metadata=graph.metadata,
        qParams=QParams(pinnedIds=[pin for pin in graph.qParams.pinnedIds if pin in kept]),
        nodes=[node for node in graph.nodes if node.node_id in kept],
        links=[link for link in graph.links if link.source in kept and link.target in kept],
    )
