"""The run as one HTML file: works offline, loads nothing, escapes all text that comes from outside."""

import base64
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path

from lit_sparse.common import formatting as fmt
from lit_sparse.common.files import write_atomically
from lit_sparse.records.run import RunRecord
from lit_sparse.report.run.explorer import explorer
from lit_sparse.report.run.plots import render_plots
from lit_sparse.report.shared.frame import html_page


def write_page(record: RunRecord, path: str | os.PathLike[str], plots: Mapping[str, bytes] | None = None) -> Path:
    """Write the page of a run and give its path.

    Args:
        record: what the run measured.
        path: the HTML file, replaced whole if it exists.
        plots: PNG by file name as from `render_plots`, to spare drawing them again.
    """
    path = Path(path)
    html = page_html(record, render_plots(record) if plots is None else plots)
    write_atomically(path, html.encode())
    return path


def page_html(record: RunRecord, plots: Mapping[str, bytes]) -> str:
    """The page as text."""
    summary = record.summary
    model = escape(fmt.visible(summary.get("model") or "a language model"))
    body = [
        _headline(summary, model),
        "<h2>Summary</h2>" + _table(fmt.summary_rows(summary)),
        _details(summary),
        "<h2>What the words mean</h2>" + _terms(summary),
    ]
    if record.example is not None:
        body.append(explorer(record.example))
    body.append("<h2>Plots</h2>" + "".join(_figure(record, name, png) for name, png in plots.items()))
    return html_page(
        f"Sparse attention: {model}",
        "".join(body),
        styles=[],
        scripts=["page.js"],
    )


def _headline(summary: Mapping[str, object], model: str) -> str:
    satisfied = summary.get("satisfied")
    mark, word, css = {
        "yes": ("✓", "The constraint is satisfied", "yes"),
        "no": ("✗", "The constraint is not satisfied", "no"),
    }.get(fmt.satisfied_text(summary), ("?", "Whether the constraint is satisfied is not known", ""))
    kept = fmt.open_edges(summary)
    title = kept if kept != fmt.MISSING else "Sparse attention"
    if satisfied is not None and kept != fmt.MISSING:
        title += ", within the tolerance" if satisfied else ", outside the tolerance"
    value, tolerance = fmt.constraint_value(summary), summary.get("tolerance")
    kind = fmt.constraint_kind(summary)
    name = fmt.CONSTRAINT_NAMES.get(kind, fmt.visible(kind)) if kind else "constraint"
    tiles = [
        ("Open edges per query and head", fmt.decimal(summary.get("edges_per_query"), 2),
         f"{fmt.edge_share(summary)}; {fmt.edges_at_start(summary)} at the start"),
        ("Cross-entropy change", fmt.signed(fmt.ce_change(summary)),
         f"from {fmt.decimal(summary.get('base_ce'))} to {fmt.decimal(summary.get('ce'))} nats per token"),
        ("KL from the base model", fmt.decimal(summary.get("kl")), "nats per token"),
    ]  # fmt: skip
    cells = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(text)}<small>{escape(more)}</small></dd></div>"
        for label, text, more in tiles
    )
    return (
        f'<p class="eyebrow"><bdi>{model}</bdi></p><h1>{escape(title)}</h1>'
        f'<p><span class="verdict {css}"><span aria-hidden="true">{mark}</span> {word}</span>: '
        f"{escape(name)} {fmt.decimal(value)}, tolerance {fmt.decimal(tolerance)}.</p>"
        f'<dl class="tiles">{cells}</dl>'
    )


def _table(rows: list[tuple[str, str]]) -> str:
    cells = (f'<tr><th scope="row">{escape(a)}</th><td><bdi>{escape(b)}</bdi></td></tr>' for a, b in rows)
    return f"<table><tbody>{''.join(cells)}</tbody></table>"


def _details(summary: Mapping[str, object]) -> str:
    rows = [(fmt.visible(key), fmt.visible(value)) for key, value in summary.items()]
    return f"<details><summary>All values of summary.json</summary>{_table(rows)}</details>" if rows else ""


def _terms(summary: Mapping[str, object]) -> str:
    kind = fmt.constraint_kind(summary)
    what = fmt.CONSTRAINT_NAMES.get(kind or "", "distance from the base model, or its loss,")
    constraint = summary.get("constraint_described") or f"the model's {what} has to stay at or below the tolerance"
    closed = {
        True: "; where it is closed, the head's mean value takes that token's place",
        False: "; where it is closed, that token adds nothing to the head's output",
    }.get(summary.get("centered"), "")  # type: ignore[call-overload]  # older records do not say
    terms = {
        "Edge": "One head's path from a token to itself or an earlier token: where it is open, the head reads "
        f"that token{closed}.",
        "Constraint": f"What training must not give up: {fmt.visible(constraint)}.",
        "Lambda (λ)": "The price of breaking the constraint: it rises while the constraint is violated and "
        "falls while it holds, so edges are removed only as fast as the model can bear.",
    }
    if "test_tokens" in summary:  # older records measured the start on the validation split
        terms["Splits"] = (
            "All results on this page are measured on the test split, also those from before training and those of "
            "the base model. Only the curves of training are not: they show text that is trained on and the "
            "validation split, which also chose the checkpoint."
        )
    return (
        '<dl class="terms">'
        + "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in terms.items())
        + "</dl>"
    )


def _figure(record: RunRecord, name: str, png: bytes) -> str:
    summary = record.summary
    layers, heads = record.edges_end.shape
    alt, caption = {
        "training.png": (
            f"Four curves over {fmt.count(summary.get('steps'))} steps, in training and on the validation split: "
            "cross-entropy beside the base model's; the constraint against its tolerance; the multiplier lambda; the "
            "share of open edges.",
            "Training. In training the gates are drawn at random; on the validation split they are deterministic.",
        ),
        "edges.png": (
            f"Two heat maps of {layers} layers by {heads} heads: the share of each head's edges that are "
            f"open, before training ({fmt.edges_at_start(summary)} per query and head) and after "
            f"({fmt.open_edges(summary)}).",
            "Open edges of every head before and after training, on one logarithmic colour scale.",
        ),
        "attention.png": (
            "Attention maps of one sentence before and after training: the open edges of all heads together, "
            "then the weights of the heads that move most attention between tokens.",
            "One sentence: coloured cells are open edges, pale grey cells are closed ones.",
        ),
    }.get(name, (name, name))
    data = base64.b64encode(png).decode()
    return (
        f'<figure><div class="pan"><img src="data:image/png;base64,{data}" alt="{escape(alt)}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
