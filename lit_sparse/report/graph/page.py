"""Attribution graphs as one HTML file to explore: works offline, loads nothing, escapes all text from outside.

Python writes the frame and puts graph.json into the page as it is; `assets/graph*.js` draw it. Text in that data
reaches the page through textContent and the canvas only.
"""

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from lit_sparse.common.files import write_atomically
from lit_sparse.common.formatting import count, decimal, duration, percent, visible, visible_token
from lit_sparse.records.feature_examples import Examples
from lit_sparse.records.graph import HEAD, LOGIT, GraphFile
from lit_sparse.records.graph_summary import GraphSummary
from lit_sparse.report.shared.frame import html_page
from lit_sparse.report.shared.page_data import json_for_html

_SCRIPTS = ("graph_model.js", "graph_canvas.js", "graph_panel.js", "graph.js")
_TERMS = {
    "Feature": "A direction that a transcoder found in the MLPs: it reads the input of its layer's MLP and writes to "
    "the output of that MLP and, in a cross-layer transcoder, of all later ones. Its activation says how strongly it "
    "is there at this position.",
    "Head": "One attention head at one position. It reads earlier positions through its open edges and writes what it "
    "read here: everything that moves between positions in this graph does so through a head.",
    "Error": "What the transcoders miss of an MLP's output. It has no inputs: what comes from it stays unexplained.",
    "Link": "What one node writes directly into what another reads, in the units of the reader, with attention "
    "weights, norms and active features as they are on this prompt. All links into a node and its biases add up to "
    "its value; links of the nodes that pruning removed are not in the page.",
    "Head's attribution": "What the head adds to the explained logits, directly and through everything later.",
    "Influence": "The share of a node in what all logits here were made of: links, each divided by the sum of |weight| "
    "into its target, multiplied along paths and summed over them.",
    "Heads for 80 %": "The smallest number of heads that have 80 % of all heads' attribution, without its signs.",
    "Between two positions": "For every pair of positions, the smallest number of heads that have 80 % of the "
    "attribution of the edges from the one to the other; the mean over pairs, weighted by their attribution.",
    "Replacement error": "How far the transcoders' outputs are from the MLPs' outputs on this prompt: the norm of the "
    "difference over the norm of the outputs.",
}


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
    path = Path(path)
    write_atomically(path, graph_html(graphs, examples).encode())
    return path


def graph_html(graphs: Sequence[GraphFile], examples: Sequence[Examples | None] | None = None) -> str:
    """The page as text; arguments and errors as of `write_graph_page`."""
    if len(graphs) not in (1, 2):
        raise ValueError(f"a page shows one graph or two, not {len(graphs)}")
    examples = [None] * len(graphs) if examples is None else examples
    if len(examples) != len(graphs):
        raise ValueError(f"{len(graphs)} graphs need as many examples, not {len(examples)}: None where there are none")
    first = graphs[0]
    prompt, answer = escape(visible(first.metadata.prompt)), escape(_answer(first))
    data = [
        {"file": graph.as_json(), "examples": _of_graph(graph, found)}
        for graph, found in zip(graphs, examples, strict=True)
    ]
    return html_page(
        f"Attribution graph: {answer}",
        f"""<p class="eyebrow">Attribution graph: what the next token was made of</p>
<h1><bdi>{prompt}</bdi> <span class="answer">→ <bdi>{answer}</bdi></span></h1>
{_lead(graphs)}
<noscript><p>The graph needs JavaScript.</p></noscript>
{_controls()}
{_tabs(graphs)}
<div class="graphs graphs-{len(graphs)}">{"".join(_graph(graph, index) for index, graph in enumerate(graphs))}</div>
<h2>What the words mean</h2>
<dl class="terms">{"".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in _TERMS.items())}</dl>
<script type="application/json" id="graph-data">{json_for_html(data)}</script>""",
        styles=["graph.css"],
        scripts=_SCRIPTS,
    )


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


def _kind(graph: GraphFile, index: int) -> str:
    summary = graph.metadata.summary
    if summary is None or summary.sparse is None:
        return f"graph {index + 1}"
    return "sparse" if summary.sparse else "dense"


def _lead(graphs: Sequence[GraphFile]) -> str:
    found = [graph.metadata.summary for graph in graphs]
    if any(summary is None for summary in found):
        return ""
    texts = [
        f"{_heads(one)} in the {_kind(graph, index)} model"
        for index, (graph, one) in enumerate(zip(graphs, found, strict=True))
        if one is not None
    ]
    text = f"80 % of the attention attribution to the answer comes from {' and from '.join(texts)}."
    moved = [decimal(one.heads_for_80_by_connection, 1) for one in found if one and one.heads_for_80_by_connection]
    if len(moved) == len(found):
        text += f" What moves between two positions: from {' and from '.join(moved)} heads, on average over pairs."
    return f"<p>{escape(text)}</p>"


def _heads(summary: GraphSummary) -> str:
    return f"{count(summary.heads_for_80)} head{'' if summary.heads_for_80 == 1 else 's'}"


def _controls() -> str:
    legend = "".join(
        f'<li><i class="mark {kind}" aria-hidden="true"></i>{text}</li>'
        for kind, text in (("feature", "feature"), ("head", "head"), ("error", "error"), ("token", "token, logit"))
    )
    lines = '<li><i class="stroke" aria-hidden="true"></i>adds</li><li><i class="stroke minus" aria-hidden="true"></i>takes away</li>'  # noqa: E501
    return f"""<div class="bar-of-controls" role="group" aria-label="What is drawn">
<label><span>Nodes</span> <input id="reach" type="range" min="0" max="100" value="100"><output id="reach-says"></output></label>
<label><span>Links</span> <input id="floor" type="range" min="0" max="9" value="0"><output id="floor-says"></output></label>
<ul class="legend" aria-label="Legend">{legend}{lines}</ul>
</div>"""  # noqa: E501


def _tabs(graphs: Sequence[GraphFile]) -> str:
    if len(graphs) < 2:
        return ""
    tabs = "".join(
        f'<button type="button" role="tab" class="chip" id="tab-{index}" aria-controls="graph-{index}">'
        f"{escape(_kind(graph, index).capitalize())}</button>"
        for index, graph in enumerate(graphs)
    )
    return f'<div class="tabs" role="tablist" aria-label="Graphs">{tabs}</div>'


def _graph(graph: GraphFile, index: int) -> str:
    summary = graph.metadata.summary
    model = summary.model if summary is not None and summary.model else graph.metadata.scan
    heads = sum(node.feature_type == HEAD for node in graph.nodes)
    facts = [f"{count(len(graph.nodes))} nodes ({count(heads)} of heads)", f"{count(len(graph.links))} links"]
    if summary is not None:
        facts += [f"{_heads(summary)} for 80 %", f"replacement error {decimal(summary.replacement_error)}"]
        facts += [f"explains {percent(summary.explained_variance)} of the MLPs"] if summary.explained_variance else []
        facts += [duration(summary.seconds)]
    text = " · ".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return f"""<section class="graph" id="graph-{index}" aria-labelledby="name-{index}">
<h2 id="name-{index}">{escape(_kind(graph, index).capitalize())} <small><bdi>{escape(visible(model))}</bdi></small></h2>
<p class="facts">{text}</p>
<div class="stage">
<div class="drawing">
<div class="scroll"><canvas tabindex="0" role="application" aria-label="Graph: layers from bottom to top, tokens from
left to right. Arrow keys move along nodes, Enter selects, p pins, g groups pinned nodes, slash searches the list,
Escape clears. The list of nodes beside it says the same in text."></canvas></div>
<form class="naming" hidden><label>Name of the group <input type="text" maxlength="60" required></label>
<button class="chip">Group</button></form>
<div class="pins" aria-label="Pinned nodes and groups" role="group"></div>
<p class="state"><span class="shown"></span>
<button type="button" class="chip download">Download graph.json</button></p>
</div>
<div class="panel" role="region" aria-label="Chosen node" tabindex="-1"></div>
<div class="finder"><label>Nodes <input type="search" placeholder="search, press /"></label>
<span class="found soft" aria-live="polite"></span>
<ul role="listbox" tabindex="0" aria-label="Nodes, the most influential first"></ul></div>
</div>
<p class="live" aria-live="polite"></p>
</section>"""
