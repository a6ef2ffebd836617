"""The run as one HTML file: works offline, loads nothing, escapes all text that comes from outside."""

import os
from collections.abc import Mapping
from pathlib import Path

from lit_sparse.common import formatting as fmt
from lit_sparse.records.run import RunRecord
from lit_sparse.records.run_summary import RunSummary
from lit_sparse.report.run.explorer import Explorer
from lit_sparse.report.run.plots import render_plots
from lit_sparse.report.run.wording import (
    constraint_name,
    constraint_words,
    edges_before,
    edges_tile,
    open_edges,
    summary_rows,
)
from lit_sparse.report.shared.picture import Picture
from lit_sparse.report.shared.rendering import render, write_html
from lit_sparse.report.shared.tile import Tile


def write_page(record: RunRecord, path: str | os.PathLike[str], plots: Mapping[str, bytes] | None = None) -> Path:
    """Write the page of a run and give its path.

    Args:
        record: what the run measured.
        path: the HTML file, replaced whole if it exists.
        plots: PNG by file name as from `render_plots`, to spare drawing them again.
    """
    return write_html(page_html(record, render_plots(record) if plots is None else plots), path)


def page_html(record: RunRecord, plots: Mapping[str, bytes]) -> str:
    """The page as text."""
    summary = record.summary
    return render(
        "run.html",
        model=summary.model or "a language model",
        title=_title(summary),
        summary=summary,
        constraint_name=constraint_name(summary),
        constraint=constraint_words(summary),
        tiles=_tiles(summary),
        rows=summary_rows(summary),
        everything=[(fmt.visible(key), fmt.visible(value)) for key, value in summary.as_json().items()],
        explorer=None if record.example is None else Explorer.of(record.example),
        pictures=[_picture(record, name, png) for name, png in plots.items()],
    )


def _title(summary: RunSummary) -> str:
    kept = open_edges(summary)
    if kept is None:
        return "Sparse attention"
    return kept + {True: ", within the tolerance", False: ", outside the tolerance", None: ""}[summary.satisfied]


def _tiles(summary: RunSummary) -> list[Tile]:
    both = f"from {fmt.decimal(summary.base_ce)} to {fmt.decimal(summary.ce)} nats per token"
    return [
        edges_tile(summary),
        Tile("Cross-entropy change", fmt.signed(summary.ce_change), both),
        Tile("KL from the base model", fmt.decimal(summary.kl), "nats per token"),
    ]


def _picture(record: RunRecord, name: str, png: bytes) -> Picture:
    summary = record.summary
    layers, heads = record.edges_end.shape
    alt, caption = {
        "training.png": (
            f"Four curves over {fmt.count(summary.steps)} steps, on training text and on the validation split: "
            "cross-entropy beside the base model's; the constraint beside its tolerance; the Lagrange multiplier; the "
            "share of open edges.",
            "Training. Gates are sampled in training; on the validation split they are deterministic.",
        ),
        "edges.png": (
            f"Two heat maps of {layers} layers by {heads} heads: the share of each head's edges that are open in the "
            f"sparse model, at the start of training ({edges_before(summary)} per query and head) and at the end "
            f"({open_edges(summary) or fmt.MISSING}).",
            "Open edges of every head of the sparse model at the start and at the end of training, on one logarithmic "
            "colour scale. In the base model all edges are open.",
        ),
        "attention.png": (
            "Attention maps of one sentence in the base model and in the sparse model: the open edges of all heads "
            "together, then the weights of the heads with the most attention between different tokens.",
            "One sentence. A coloured cell is an open edge, a pale grey cell is a closed one.",
        ),
    }.get(name, (name, name))
    return Picture(png, alt, caption)
