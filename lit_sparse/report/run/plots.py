"""The plots of a run: training curves, edges by head, one sentence's attention in the base and the sparse model.

Every function returns a matplotlib `Figure` and touches no global state (no pyplot).
"""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lit_sparse.common.files import write_atomically
from lit_sparse.common.formatting import percent
from lit_sparse.records.run import RunRecord
from lit_sparse.records.run_summary import RunSummary
from lit_sparse.report.run.attention_maps import attention_example
from lit_sparse.report.run.wording import constraint_name
from lit_sparse.report.shared import style

START, END = "Start of training", "End of training"  # the sparse model; the base model has all edges open
_BASE = "base model, validation"


def training_curves(history: Sequence[Mapping[str, float]], summary: RunSummary) -> Figure:
    """Cross-entropy, constraint, multiplier and edge fraction over the optimizer steps: of training text, and of the
    validation split beside the base model's cross-entropy on it.

    Args:
        history: rows with `step` and any of the metric names `train/...` and `val/...`.
        summary: the tolerance that training went by is drawn as a line where present.
    """
    figure = style.new_figure(7.6, 9.8, "Training")
    panels = figure.subplots(4, 1, sharex=True)

    axes = style.plain_axes(panels[0], "Cross-entropy")
    _line(axes, history, "train/ce", "train")
    _points(axes, history, "val/ce", "validation")
    base_ce = next((row["val/base_ce"] for row in reversed(history) if "val/base_ce" in row), math.nan)
    if math.isfinite(base_ce):
        axes.axhline(base_ce, color=style.GREY, linestyle="--", linewidth=1.2, label=_BASE)
    axes.set_ylabel("nats / token")

    # A record without the former is older: its only tolerance is that of training.
    tolerance = summary.tolerance if summary.tolerance_in_training is None else summary.tolerance_in_training
    axes = style.plain_axes(
        panels[1], f"Constraint: {constraint_name(summary)}" if summary.constraint else "Constraint"
    )
    _line(axes, history, "train/constraint", "train")
    _points(axes, history, "val/constraint", "validation")
    if tolerance is not None:
        axes.axhline(tolerance, color=style.GREY, linestyle="--", linewidth=1.2, label="tolerance")
    axes.set_ylabel("nats / token")

    axes = style.plain_axes(panels[2], "Lagrange multiplier λ, the weight of the constraint")
    _line(axes, history, "train/lambda", "", smooth=False)
    style.log_axis(axes, _column(history, "train/lambda")[1])
    axes.set_ylabel("λ (log scale)")

    axes = style.plain_axes(panels[3], "Open edges")
    _line(axes, history, "train/edge_fraction", "train, sampled gates")
    _points(axes, history, "val/edge_fraction", "validation, deterministic gates")
    fractions = [*_column(history, "train/edge_fraction")[1], *_column(history, "val/edge_fraction")[1]]
    style.log_axis(axes, fractions, percent=True)
    axes.set_ylabel("% of allowed (log scale)")
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left, right = axes.get_xlim()
    if right - left < 2:  # one step only
        axes.set_xlim((left + right) / 2 - 1, (left + right) / 2 + 1)

    for axes in panels:
        if not axes.lines or all(line.get_label() in ("tolerance", _BASE) for line in axes.lines):
            style.note(axes, "nothing was logged")
        style.legend(axes)
    figure.align_ylabels(panels)
    return figure


def edges_by_head(measured: Mapping[str, Float[np.ndarray, "layers heads"]]) -> Figure:
    """Open edge fraction of every head, one panel under each name (such as `START` and `END`), on one log colour scale.

    Heads with no open edge (and NaN) are pale grey.
    """
    layers, heads = next(iter(measured.values())).shape
    width, panel = 7.6, float(np.clip(5.6 * heads / layers, 1.3, 3.8))
    figure = style.new_figure(width, len(measured) * panel + 1.7, "Open edges by layer and head")
    norm = style.log_norm(np.concatenate([fractions.ravel() for fractions in measured.values()]))
    panels = figure.subplots(len(measured), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (when, fractions) in zip(panels, measured.items(), strict=True):
        finite = fractions[np.isfinite(fractions)]
        mean = percent(finite.mean()) if finite.size else "not known"
        style.plain_axes(axes, f"{when}: {mean} of the edges open, mean over heads", grid=False)
        axes.set_facecolor(style.CLOSED)
        shown = np.ma.masked_where(~(np.isfinite(fractions) & (fractions > 0)), fractions)
        axes.pcolormesh(
            np.arange(layers + 1) - 0.5, np.arange(heads + 1) - 0.5, shown.T,
            norm=norm, cmap=style.WEIGHTS, edgecolors=style.PAPER, linewidth=0.6,
        )  # fmt: skip
        axes.invert_yaxis()
        axes.set_ylabel("head")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    panels[-1].set_xlabel("layer")
    bar = figure.colorbar(ScalarMappable(norm, style.WEIGHTS), ax=list(panels), pad=0.02, aspect=35)
    style.log_bar(bar.ax, norm, style.percent_tick, "% of a head's allowed edges (log scale)")
    return figure


def render_plots(record: RunRecord) -> dict[str, bytes]:
    """All plots of the record as PNG, by file name; `attention.png` only if there is an example."""
    with warnings.catch_warnings():
        # A token may be written in a script that the bundled font lacks: a box stands for it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        plots = {
            "training.png": style.png(training_curves(record.history, record.summary)),
            "edges.png": style.png(edges_by_head({START: record.edges_start, END: record.edges_end})),
        }
        if record.example is not None:
            plots["attention.png"] = style.png(attention_example(record.example))
    return plots


def write_plots(record: RunRecord, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Save `training.png`, `edges.png` and `attention.png` in `folder`; gives their paths by file name."""
    paths: dict[str, Path] = {}
    for name, content in render_plots(record).items():
        paths[name] = Path(folder) / name
        write_atomically(paths[name], content)
    return paths


def _column(history: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    rows = [row for row in history if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]


def _line(axes: Axes, history: Sequence[Mapping[str, float]], name: str, label: str, smooth: bool = True) -> None:
    """A training series; a long one thin and pale, under its running mean."""
    steps, values = _column(history, name)
    if not np.isfinite(values).any():
        return
    smooth = smooth and len(values) >= 40
    marker = "o" if len(values) == 1 else None
    axes.plot(steps, values, color=style.BLUE, linewidth=0.7 if smooth else 1.4, alpha=0.3 if smooth else 1.0,
              marker=marker, markersize=3, label=None if smooth else label or None)  # fmt: skip
    if smooth:
        axes.plot(steps, style.running_mean(values), color=style.BLUE, linewidth=1.6, label=f"{label}, running mean")


def _points(axes: Axes, history: Sequence[Mapping[str, float]], name: str, label: str) -> None:
    steps, values = _column(history, name)
    if np.isfinite(values).any():
        axes.plot(steps, values, color=style.VERMILLION, linewidth=1.0, marker="o", markersize=4, label=label)
