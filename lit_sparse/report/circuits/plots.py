"""The plots of a comparison of circuits: faithfulness over size, and the ratios.

Every function returns a matplotlib `Figure` and touches no global state (no pyplot).
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lit_sparse.common.formatting import percent, visible
from lit_sparse.records.circuits import LEVELS, SIDES, Comparison, Level, Side, TaskResult
from lit_sparse.report.circuits.drawing import circuit_drawing
from lit_sparse.report.circuits.values import PLURAL, mean_curve, size, times
from lit_sparse.report.shared import style

_HALO = [withStroke(linewidth=3, foreground=style.PAPER)]  # numbers stay legible on top of lines
COLOURS: dict[Side, str] = {"base": style.VERMILLION, "sparse": style.BLUE}


def render_circuits(found: Comparison) -> dict[str, bytes]:
    """All plots as PNG, by file name: `ratios.png` and per measured task `TASK_curves.png`, `TASK_circuit_base.png` and
    `TASK_circuit_sparse.png` (a model that does not reach the share of the effect has no circuit to draw)."""
    tasks = found.result.measured
    plots = {"ratios.png": style.png(ratio_plot(found))} if tasks else {}
    for task in tasks:
        plots[f"{task.task}_curves.png"] = style.png(curves(found, task))
        for side in SIDES:
            model = task.of(side)
            if model is not None and model.circuit is not None:
                title = f"{visible(task.task)}, {side} model"
                plots[f"{task.task}_circuit_{side}.png"] = style.png(circuit_drawing(title, model.shape, model.circuit))
    return plots


def curves(found: Comparison, task: TaskResult) -> Figure:
    """Faithfulness over the number of edges and of heads: a thin line a seed, the bold mean, and the smallest circuit
    that keeps the headline share of the effect (its mean over seeds)."""
    share = found.result.headline_share
    figure = style.new_figure(9.0, 3.7, f"{visible(task.task)}: faithfulness of circuits over their size")
    panels = figure.subplots(1, 2, sharey=True)
    low, high = 0.0, 1.1
    levels: tuple[Level, ...] = ("edge", "head")
    for axes, level in zip(panels, levels, strict=True):
        style.plain_axes(axes)
        most = 1
        axes.axhline(share, color=style.GREY, linestyle="--", linewidth=1.0)
        for side in SIDES:
            model = task.of(side)
            runs = [run.of(level) for run in model.runs if run.of(level).sizes] if model is not None else []
            if not runs:
                continue
            for run in runs:
                axes.plot(run.sizes, run.values, color=COLOURS[side], linewidth=0.7, alpha=0.4)
            most = max(most, *(run.total for run in runs))
            sizes, mean = mean_curve(runs)
            axes.plot(sizes, mean, color=COLOURS[side], linewidth=2.2, label=f"{side} model")
            low, high = min(low, float(mean.min())), max(high, float(mean.max()))
        row = found.row(task.task, level, share)
        reached = sorted((size, side) for side in SIDES if row is not None and (size := row.of(side)) is not None)
        for place, (smallest, side) in enumerate(reached):
            _mark(axes, side, smallest, share, larger=place > 0)
        if most == 1:
            style.note(axes, "nothing was measured")
        _count_axis(axes, most)
        style.heading(axes, f"{PLURAL[level].capitalize()}, of {most:,}")
        axes.set_xlabel(f"{PLURAL[level]} in the circuit (log scale)")
        style.legend(axes)
    panels[0].set_ylim(max(low, -1.0) - 0.05, min(high, 2.0) + 0.05)
    panels[0].set_ylabel("faithfulness (share of the effect)")
    panels[0].yaxis.set_major_formatter(FuncFormatter(style.percent_tick))
    return figure


def _mark(axes: Axes, side: Side, found: float, share: float, larger: bool) -> None:
    """The smallest circuit. The smaller one's number stands above its curve, the larger one's below: both are free."""
    axes.vlines(found, -10, share, color=COLOURS[side], linestyle=":", linewidth=1.2)
    axes.plot([found], [share], marker="o", markersize=5.5, color=COLOURS[side], markeredgecolor=style.PAPER, zorder=4)
    axes.annotate(
        size(found), (found, share), xytext=(5, -5) if larger else (-5, 5), textcoords="offset points",
        ha="left" if larger else "right", va="top" if larger else "bottom",
        fontsize=style.LARGE, fontweight="bold", color=COLOURS[side], path_effects=_HALO,
    )  # fmt: skip


def _count_axis(axes: Axes, most: int) -> None:
    """A log axis of counts that also shows 0."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    start = min((float(np.min(line.get_xdata())) for line in axes.lines[1:]), default=1.0)
    axes.set_xlim(0 if start < 1 else 0.9, most * 1.1)
    axes.xaxis.set_major_locator(FixedLocator(([0.0] if start < 1 else []) + style.log_ticks(1, most)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def ratio_plot(found: Comparison) -> Figure:
    """Size of the base model's circuit over the sparse model's, with its interval, by task and level; in vermillion
    where the sparse model's is the larger one."""
    tasks, share = found.result.measured, found.result.headline_share
    title = f"Size of the base model's circuit over the sparse model's, for {percent(share)} of the effect"
    figure = style.new_figure(9.0, 1.3 + 0.36 * len(tasks), title)
    for axes, level in zip(figure.subplots(1, 2, sharey=True), LEVELS, strict=True):
        style.plain_axes(axes, PLURAL[level].capitalize())
        axes.axvline(1, color=style.GREY, linestyle="--", linewidth=1.0)
        ends = [1.0]
        for y, task in enumerate(tasks):
            row = found.row(task.task, level, share)
            if row is None or row.ratio is None:
                axes.text(1, y, "  no ratio", va="center", fontsize=style.SMALL, color=style.GREY)
                continue
            ratio = row.ratio
            bounds = (row.ratio_low or ratio, row.ratio_high or ratio)
            colour = style.BLUE if ratio >= 1 else style.VERMILLION
            axes.plot(bounds, (y, y), color=colour, linewidth=2.0, solid_capstyle="butt")
            axes.plot([ratio], [y], marker="o", markersize=6, color=colour, markeredgecolor=style.PAPER)
            axes.annotate(
                times(ratio), (ratio, y), xytext=(0, 6), textcoords="offset points", ha="center",
                fontsize=style.SMALL, color=style.INK if ratio >= 1 else colour, path_effects=_HALO,
            )  # fmt: skip
            ends += [ratio, *bounds]
        axes.set_xscale("log")
        axes.set_xlim(min(ends) / 1.3, max(*ends, 2.0) * 1.3)
        axes.xaxis.set_major_locator(FixedLocator(_ratio_ticks(*axes.get_xlim())))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.set_yticks(range(len(tasks)), [visible(task.task) for task in tasks], fontsize=style.NORMAL)
        axes.set_ylim(len(tasks) - 0.4, -0.7)
        axes.set_xlabel("size in base model / size in sparse model (log scale)")
    return figure


def _ratio_ticks(low: float, high: float) -> list[float]:
    """Round ratios, closer together where the range is less than a decade."""
    if high > 10 * low:
        return style.log_ticks(low, high)
    return [tick for tick in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20) if low <= tick <= high]
