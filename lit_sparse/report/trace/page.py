"""One prompt's trace as one HTML file: works offline, loads nothing, escapes all text that comes from outside.

Python writes the tokens and the numbers, `assets/trace.js` draws. No text travels in the data.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from lit_sparse.common.formatting import count, decimal, duration, percent, visible, visible_token
from lit_sparse.records.trace import Trace
from lit_sparse.report.shared.rendering import render, write_html

MOST_EDGES = 12_000  # a model's, in the page
LISTED = 30


def write_trace_page(traces: Sequence[Trace], path: str | os.PathLike[str], picture: bytes | None = None) -> Path:
    """Write the page and give its path.

    Args:
        traces: of one prompt in one or two models.
        path: the HTML file, replaced whole if it exists.
        picture: the PNG of `trace_figure`, for those who read without JavaScript.
    """
    return write_html(trace_html(traces, picture), path)


def trace_html(traces: Sequence[Trace], picture: bytes | None = None) -> str:
    """The page as text."""
    return render(
        "trace.html",
        traces=traces,
        summary=_summary(traces),
        listed=LISTED,
        picture=picture,
        data=[encode_trace(trace) for trace in traces],
    )


def encode_trace(trace: Trace) -> dict[str, object]:
    """Numbers of one trace: edges in columns (the first, at most MOST_EDGES), and the ablations that these suffice to
    draw."""
    edges = trace.edges[:MOST_EDGES]
    return {
        "layers": trace.layers,
        "size": len(trace.tokens),
        "layer": edges.layer.tolist(),
        "head": edges.head.tolist(),
        "query": edges.query.tolist(),
        "key": edges.key.tolist(),
        "weight": [round(float(x), 4) for x in edges.weight],
        "contribution": [float(f"{x:.3g}") for x in edges.contribution],
        "total": trace.total or 1.0,
        "probability": trace.probability,
        "steps": [[a.edges, a.probability] for a in trace.ablations if a.edges <= len(edges)],
        "shown": min(trace.shown.edges, len(edges)),
        "without": [round(p, 4) for p in trace.without],
        "needed": trace.needed,
        "cut": [round(x, 4) for x in trace.cut],
        "paths": [path if path is None or max(path, default=0) < len(edges) else None for path in trace.paths],
    }


def _summary(traces: Sequence[Trace]) -> list[tuple[str, list[str]]]:
    """The rows that compare the models: a label, and a cell a model."""
    size, keep = len(traces[0].tokens), percent(traces[0].keep)
    return [
        ("Model", [visible(t.model) for t in traces]),
        ("Likeliest next tokens", [_predictions(t) for t in traces]),
        ("Answer's probability", [decimal(t.probability) for t in traces]),
        ("Open edges", [f"{count(t.open)} ({percent(t.open / max(1, t.allowed))})" for t in traces]),
        ("Tokens that reach the answer through open edges", [f"{sum(t.reaches)} of {size}" for t in traces]),
        (f"Edges of the circuit (keep {keep} of this probability)", [count(t.shown.connected) for t in traces]),
        ("Tokens that reach the answer in the circuit", [f"{t.shown.tokens} of {size}" for t in traces]),
        ("Answer's probability, circuit alone", [decimal(t.shown.probability) for t in traces]),
        ("Time to compute", [duration(t.seconds) for t in traces]),
    ]  # fmt: skip


def _predictions(trace: Trace) -> str:
    return ", ".join(f"{visible_token(token, 14)} {decimal(p)}" for token, p in trace.predictions[:3])
