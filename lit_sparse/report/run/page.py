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
    CONSTRAINT_NAMES,
    constraint_name,
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
    what = CONSTRAINT_NAMES.get(summary.constraint or "", "distance from the base model, or its loss,")
    return render(
        "run.html",
        model=summary.model or "a language model",
        title=_title(summary),
        summary=summary,
        constraint_name=constraint_name(summary),
        constraint=summary.constraint_described or f"the model's {what} has to stay at or below the tolerance",
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
            f"Four curves over {fmt.count(summary.steps)} steps, in training and on the validation split: "
            "cross-entropy beside the base model's; the constraint against its tolerance; the multiplier lambda; the "
            "share of open edges.",
            "Training. In training the gates are drawn at random; on the validation split they are deterministic.",
        ),
        "edges.png": (
            f"Two heat maps of {layers} layers by {heads} heads: the share of each head's edges that are "
            f"open, before training ({edges_before(summary)} per query and head) and after "
            f"({open_edges(summary) or fmt.MISSING}).",
            "Open edges of every head before and after training, on one logarithmic colour scale.",
        ),
        "attention.png": (
            "Attention maps of one sentence before and after training: the open edges of all heads together, "
            "then the weights of the heads that move most attention between tokens.",
            "One sentence: coloured cells are open edges, pale grey cells are closed ones.",
        ),
    }.get(name, (name, name))
    return Picture(png, alt, caption)
