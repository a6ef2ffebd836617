"""One prompt's trace as one HTML file: works offline, loads nothing, escapes all text that comes from outside.

Python writes the tokens and the numbers, `assets/trace.js` draws. No text travels in the data.
"""

import base64
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from lit_sparse.common.files import write_atomically
from lit_sparse.common.formatting import count, decimal, duration, percent, visible, visible_token
from lit_sparse.records.trace import Trace
from lit_sparse.report.shared.frame import html_page
from lit_sparse.report.shared.page_data import json_for_html

MOST_EDGES = 12_000  # a model's, in the page
LISTED = 30

_TERMS = {
    "Edge": "One head's path from a token (its key) to itself or a later token (its query). Where the gate is open the "
    "head moves something from key to query; a dense model has all of its edges open.",
    "Reach": "Between tokens only open edges move anything; the residual stream and the MLPs stay at their position. "
    "A token reaches the answer if open edges lead from it, layer by layer, to the last position. This is about what "
    "is moved: gates and softmax normalisers also see the keys of closed edges, so that a token that does not reach "
    "can still have a say in which edges are open and how strong they are.",
    "Contribution": "What an edge carries of the answer's logit (less the mean logit): its weight times the "
    "gradient, averaged over all edges between tokens at a half, three quarters and all of their weights. Share is of "
    "the sum of all contributions without their signs. Edges in a row on one path each count what flows through them.",
    "Kept alone": "A real forward pass in which every edge between tokens is closed but the strongest ones, whose "
    "weights stay as they were. What a token reads from itself is always kept. A probability can also rise when "
    "edges go that speak against the answer.",
    "Shown": "The smallest number of strongest edges that keep the stated share of the answer's probability, and from "
    "which on every larger number tried does too.",
    "Cut": "The change of the answer's log-probability when all edges out of one position are closed, weights of all "
    "others frozen: what is lost when no later token reads it.",
    "Path": "The token's strongest way to the answer: its weakest edge is as strong as possible, and it has the fewest "
    "edges of these.",
}


def write_trace_page(traces: Sequence[Trace], path: str | os.PathLike[str], picture: bytes | None = None) -> Path:
    """Write the page and give its path.

    Args:
        traces: of one prompt in one or two models.
        path: the HTML file, replaced whole if it exists.
        picture: the PNG of `trace_figure`, for those who read without JavaScript.
    """
    path = Path(path)
    write_atomically(path, trace_html(traces, picture).encode())
    return path


def trace_html(traces: Sequence[Trace], picture: bytes | None = None) -> str:
    """The page as text."""
    first = traces[0]
    answer = escape(visible_token(first.answer))
    data = json_for_html([encode_trace(trace) for trace in traces])
    return html_page(
        f"Trace: {answer}",
        f"""<p class="eyebrow">Why the next token came out as it did</p>
<h1><bdi>{escape(visible(first.prompt))}</bdi> <span class="answer">→ <bdi>{answer}</bdi></span></h1>
{_lead(traces)}
{_summary(traces)}
<noscript><p>The graphs need JavaScript; the picture at the end does not.</p></noscript>
<div class="models">{"".join(_model(trace, index) for index, trace in enumerate(traces))}</div>
<h2>What the words mean</h2>
<dl class="terms">{"".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in _TERMS.items())}</dl>
{_picture(picture)}
<script type="application/json" id="trace-data">{data}</script>""",
        styles=["trace.css"],
        scripts=["trace.js"],
    )


def encode_trace(trace: Trace) -> dict[str, object]:
    """Numbers of one trace: edges in columns (the strongest, at most MOST_EDGES) with contributions in thousandths of
    the strongest, and the ablations that these edges suffice to draw."""
    edges = trace.edges[:MOST_EDGES]
    strongest = float(np.abs(edges.contribution).max(initial=0.0)) or 1.0
    return {
        "layers": trace.layers,
        "size": len(trace.tokens),
        "layer": edges.layer.tolist(),
        "head": edges.head.tolist(),
        "query": edges.query.tolist(),
        "key": edges.key.tolist(),
        "weight": [round(float(x), 4) for x in edges.weight],
        "contribution": [float(f"{x:.3g}") for x in edges.contribution],
        "strongest": strongest,
        "total": trace.total or 1.0,
        "probability": trace.probability,
        "steps": [[a.edges, a.probability] for a in trace.ablations if a.edges <= len(edges)],
        "shown": min(trace.shown.edges, len(edges)),
        "needed": trace.needed,
        "cut": [round(x, 4) for x in trace.cut],
        "paths": [path if path is None or max(path, default=0) < len(edges) else None for path in trace.paths],
    }


def _lead(traces: Sequence[Trace]) -> str:
    first = traces[0]
    text = (
        f"{count(first.shown.connected)} of {count(first.open)} open edges, kept alone, give the answer a probability "
        f"of {decimal(first.shown.probability)}; with all of them it has {decimal(first.probability)}."
    )
    if len(traces) > 1:
        other = traces[1]
        text += (
            f" The {_kind(other)} model beside it needs {count(other.shown.connected)} of {count(other.open)} for "
            f"{decimal(other.shown.probability)} of {decimal(other.probability)}."
        )
    return f"<p>{escape(text)}</p>"


def _summary(traces: Sequence[Trace]) -> str:
    size = len(traces[0].tokens)
    rows = [
        ("Model", [visible(t.model) for t in traces]),
        ("Likeliest next tokens", [_predictions(t) for t in traces]),
        ("Answer's probability", [decimal(t.probability) for t in traces]),
        ("Open edges", [f"{count(t.open)} ({percent(t.open / max(1, t.allowed))})" for t in traces]),
        ("Tokens that reach the answer", [f"{sum(t.reaches)} of {size}" for t in traces]),
        (f"Edges shown (keep {percent(traces[0].keep)} of it)", [count(t.shown.connected) for t in traces]),
        ("Tokens that reach along them", [f"{t.shown.tokens} of {size}" for t in traces]),
        ("Probability, only these kept", [decimal(t.shown.probability) for t in traces]),
        ("Time", [duration(t.seconds) for t in traces]),
    ]  # fmt: skip
    head = "".join(f'<th scope="col">{_kind(trace)}</th>' for trace in traces)
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(f"<td><bdi>{escape(cell)}</bdi></td>" for cell in cells)
        + "</tr>"
        for label, cells in rows
    )
    return f'<table class="compare"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'


def _predictions(trace: Trace) -> str:
    return ", ".join(f"{visible_token(token, 14)} {decimal(p)}" for token, p in trace.predictions[:3])


def _model(trace: Trace, index: int) -> str:
    tokens = "".join(
        f'<li><button type="button">{escape(visible_token(token))}</button></li>' for token in trace.tokens
    )
    return f"""<section class="model" aria-labelledby="name-{index}">
<h2 id="name-{index}">{_kind(trace).capitalize()} <small><bdi>{escape(visible(trace.model))}</bdi></small></h2>
<div class="slide"><label for="kept-{index}">Edges kept</label>
<input id="kept-{index}" type="range" min="0" step="1"><button type="button" class="chip">shown</button></div>
<p class="state" aria-live="polite"></p>
<div class="scroll"><div class="graph" style="--size:{len(trace.tokens)}">
<svg tabindex="0" role="group" aria-label="Graph of edges over positions and layers; move with the arrow keys"></svg>
<ol class="axis">{tokens}</ol>
</div></div>
<div class="reading" aria-live="polite"></div>
<details><summary>The {LISTED} strongest edges</summary><ol class="edges"></ol></details>
</section>"""


def _picture(picture: bytes | None) -> str:
    if picture is None:
        return ""
    data = base64.b64encode(picture).decode()
    alt = (
        "The shown edges of each model over positions and layers, what cutting off each token changes, and the "
        "answer's probability over the number of edges kept."
    )
    return (
        f'<h2>As a picture</h2><figure><div class="pan"><img src="data:image/png;base64,{data}" alt="{escape(alt)}">'
        "</div><figcaption>Blue edges speak for the answer, orange ones against it.</figcaption></figure>"
    )


def _kind(trace: Trace) -> str:
    return "sparse" if trace.sparse else "dense"
