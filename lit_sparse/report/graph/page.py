"""Attribution graphs as one HTML file to explore: works offline, loads nothing, escapes all text from outside.

graph.json is in the page as it is; `assets/graph*.js` draw it. Text in that data
reaches the page through textContent and the canvas only.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lit_sparse.common.formatting import count, decimal, duration, percent, visible_token
from lit_sparse.records.feature_examples import Examples
from lit_sparse.records.graph import HEAD, LOGIT, GraphFile
from lit_sparse.records.graph_summary import GraphSummary
from lit_sparse.report.shared.rendering import render, write_html


def write_graph_page(
    graphs: Sequence[GraphFile], path: str | os.PathLike[str], examples: Sequence[Examples | None] | None = None
) -> Path:
    """Write the explorer of one prompt's graph, or of two models' graphs side by side, and give its path.

    Args:
        graphs: one or two, of one prompt.
        path: the HTML file, replaced whole if it exists.
        examples: by graph, contexts of its transcoders' features; those of features in the graph go into the page.

    Raises:
        ValueError: no graph, more than two, or not as many examples as graphs.
    """
    return write_html(graph_html(graphs, examples), path)


def graph_html(graphs: Sequence[GraphFile], examples: Sequence[Examples | None] | None = None) -> str:
    """The page as text; arguments and errors as of `write_graph_page`."""
    if len(graphs) not in (1, 2):
        raise ValueError(f"a page shows one graph or two, not {len(graphs)}")
    examples = [None] * len(graphs) if examples is None else examples
    if len(examples) != len(graphs):
        raise ValueError(f"{len(graphs)} graphs need as many examples, not {len(examples)}: None where there are none")
    first = graphs[0]
    sides = [_side(graph, index) for index, graph in enumerate(graphs)]
    return render(
        "graph.html",
        prompt=first.metadata.prompt,
        answer=_answer(first),
        lead=_lead(graphs, sides),
        sides=sides,
        data=[
            {"file": graph.as_json(), "examples": _of_graph(graph, found)}
            for graph, found in zip(graphs, examples, strict=True)
        ],
    )


class _Side(NamedTuple):
    """Facts of one graph on the page."""

    kind: str
    model: str
    facts: list[str]


def _of_graph(graph: GraphFile, examples: Examples | None) -> dict[str, object]:
    """The examples of the features that the graph holds."""
    if examples is None:
        return {}
    here = {node.node_id.rpartition("_")[0] for node in graph.nodes}
    return Examples(features={key: found for key, found in examples.features.items() if key in here}).model_dump()


def _answer(graph: GraphFile) -> str:
    """The explained token: the target, or else the likeliest logit."""
    summary = graph.metadata.summary
    if summary is not None and summary.answer is not None:
        return visible_token(summary.answer, 24)
    logits = [node for node in graph.nodes if node.feature_type == LOGIT]
    best = max(logits, key=lambda node: (node.is_target_logit, node.token_prob), default=None)
    if best is None:
        return "?"
    return visible_token(best.clerp.removeprefix('Output "').rpartition('" (p=')[0] or best.clerp, 24)


def _side(graph: GraphFile, index: int) -> _Side:
    summary = graph.metadata.summary
    heads = sum(node.feature_type == HEAD for node in graph.nodes)
    facts = [f"{count(len(graph.nodes))} nodes ({count(heads)} heads)", f"{count(len(graph.links))} links"]
    if summary is None:
        return _Side(f"graph {index + 1}", graph.metadata.scan, facts)
    facts += [
        f"{_heads(summary)} for 80 % of the attention attribution",
        f"replacement error {decimal(summary.replacement_error)}",
    ]
    facts += [f"explained variance {percent(summary.explained_variance)}"] if summary.explained_variance else []
    kind = {True: "sparse", False: "dense", None: f"graph {index + 1}"}[summary.sparse]
    return _Side(kind, summary.model or graph.metadata.scan, [*facts, f"made in {duration(summary.seconds)}"])


def _lead(graphs: Sequence[GraphFile], sides: Sequence[_Side]) -> str:
    """The page's first sentence; empty where a graph comes without a summary."""
    found = [summary for graph in graphs if (summary := graph.metadata.summary) is not None]
    if len(found) < len(graphs):
        return ""
    texts = [f"{_heads(one)} in the {side.kind} model" for side, one in zip(sides, found, strict=True)]
    text = f"80 % of the attention attribution to the answer comes from {' and from '.join(texts)}."
    moved = [decimal(one.heads_for_80_by_connection, 1) for one in found if one.heads_for_80_by_connection]
    if len(moved) == len(found):
        text += f" Between two positions, it comes from {' and from '.join(moved)} heads on average."
    return text


def _heads(summary: GraphSummary) -> str:
    return f"{count(summary.heads_for_80)} head{'' if summary.heads_for_80 == 1 else 's'}"
