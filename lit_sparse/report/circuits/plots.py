"""The plots of a comparison of circuits: faithfulness over size, the circuits themselves, and the ratios.

Every function returns a matplotlib `Figure` and touches no global state (no pyplot).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lit_sparse.common.formatting import number, percent, visible
from lit_sparse.report.circuits.component_graph import MLP_LIFT, Edge, Grid, Place, circuit_edges, curve
from lit_sparse.report.circuits.values import (
    LEVELS,
    PLURAL,
    SIDES,
    Comparison,
    Details,
    entry,
    headline_share,
    interval,
    measured,
    size,
    times,
)
from lit_sparse.report.shared import style

COLOURS = {"base": style.VERMILLION, "sparse": style.BLUE}
READERS = {
    "query": ("#8F4FBF", "into queries"),
    "key": ("#C98A00", "into keys"),
    "value": ("#1B8A5A", "into values"),
    "mlp": ("#94A0AC", "into MLPs"),
    "logits": (style.INK, "into the logits"),
}
DRAWN = 150  # edges in a picture; more become a tangle


def render_circuits(details: Details, comparison: Comparison) -> dict[str, bytes]:
    """All plots as PNG, by file name: `ratios.png` and per measured task `TASK_curves.png`, `TASK_circuit_base.png` and
    `TASK_circuit_sparse.png` (a model that does not reach the share of the effect has no circuit to draw)."""
    tasks = measured(details)
    plots = {"ratios.png": style.png(ratio_plot(details, comparison))} if tasks else {}
    for task in tasks:
        plots[f"{task['task']}_curves.png"] = style.png(curves(task, comparison, headline_share(details)))
        for side in SIDES:
            if task[side] is not None and task[side]["circuit"] is not None:
                plots[f"{task['task']}_circuit_{side}.png"] = style.png(circuit_drawing(task, side))
    return plots


def curves(task: Mapping[str, Any], comparison: Comparison, share: float) -> Figure:
    """Faithfulness over the number of edges and of heads: a thin line a seed, the bold mean, and the smallest circuit
    that keeps the share of the effect (its mean over seeds)."""
    figure = style.new_figure(9.0, 3.7, f"{visible(task['task'])}: what a circuit keeps of the effect")
    panels = figure.subplots(1, 2, sharey=True)
    low, high = 0.0, 1.1
    for axes, level in zip(panels, ("edge", "head"), strict=True):
        style.plain_axes(axes)
        most = 1
        axes.axhline(share, color=style.GREY, linestyle="--", linewidth=1.0)
        for side in SIDES:
            runs = [run[level] for run in (task[side] or {}).get("runs", []) if run[level]["sizes"]]
            if not runs:
                continue
            for run in runs:
                axes.plot(run["sizes"], run["values"], color=COLOURS[side], linewidth=0.7, alpha=0.4)
            most = max(most, *(run["total"] for run in runs))
            sizes, mean = _mean_curve(runs)
            axes.plot(sizes, mean, color=COLOURS[side], linewidth=2.2, label=side)
            low, high = min(low, float(mean.min())), max(high, float(mean.max()))
        row = entry(comparison, task["task"], level, share)
        reached = sorted((found, side) for side in SIDES if (found := number(row.get(side))) is not None)
        for place, (found, side) in enumerate(reached):
            _mark(axes, side, found, share, larger=place > 0)
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


def _mean_curve(runs: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds at every size that any of them measured, within the sizes that all of them reach."""
    start, end = max(run["sizes"][0] for run in runs), min(run["sizes"][-1] for run in runs)
    sizes = np.unique([size for run in runs for size in run["sizes"] if start <= size <= end])
    each = [np.interp(np.log1p(sizes), np.log1p(run["sizes"]), run["values"]) for run in runs]
    return sizes, np.mean(each, axis=0)


def _mark(axes: Axes, side: str, found: float, share: float, larger: bool) -> None:
    """The smallest circuit. The smaller one's number stands above its curve, the larger one's below: both are free."""
    axes.vlines(found, -10, share, color=COLOURS[side], linestyle=":", linewidth=1.2)
    axes.plot([found], [share], marker="o", markersize=5.5, color=COLOURS[side], markeredgecolor=style.PAPER, zorder=4)
    axes.annotate(
        size(found), (found, share), xytext=(5, -5) if larger else (-5, 5), textcoords="offset points",
        ha="left" if larger else "right", va="top" if larger else "bottom",
        fontsize=style.LARGE, fontweight="bold", color=COLOURS[side],
    )  # fmt: skip


def _count_axis(axes: Axes, most: int) -> None:
    """A log axis of counts that has a place for 0."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    start = min((float(np.min(line.get_xdata())) for line in axes.lines[1:]), default=1.0)
    axes.set_xlim(0 if start < 1 else 0.9, most * 1.1)
    axes.xaxis.set_major_locator(FixedLocator(([0.0] if start < 1 else []) + style.log_ticks(1, most)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def ratio_plot(details: Details, comparison: Comparison) -> Figure:
    """Size of the base model's circuit over the sparse model's, with its interval, by task and level; in vermillion
    where the sparse model's is the larger one."""
    tasks, share = measured(details), headline_share(details)
    title = f"How many heads and edges the sparse model needs against its base, for {percent(share)} of the effect"
    figure = style.new_figure(9.0, 1.3 + 0.36 * len(tasks), title)
    for axes, level in zip(figure.subplots(1, 2, sharey=True), LEVELS, strict=True):
        style.plain_axes(axes, PLURAL[level].capitalize())
        axes.axvline(1, color=style.GREY, linestyle="--", linewidth=1.0)
        ends = [1.0]
        for y, task in enumerate(tasks):
            row = entry(comparison, task["task"], level, share)
            ratio = number(row.get("ratio"))
            if ratio is None:
                axes.text(1, y, "  no ratio", va="center", fontsize=style.SMALL, color=style.GREY)
                continue
            bounds = (row["ratio_low"], row["ratio_high"]) if interval(row) else (ratio, ratio)
            colour = style.BLUE if ratio >= 1 else style.VERMILLION
            axes.plot(bounds, (y, y), color=colour, linewidth=2.0, solid_capstyle="butt")
            axes.plot([ratio], [y], marker="o", markersize=6, color=colour, markeredgecolor=style.PAPER)
            axes.annotate(times(ratio), (ratio, y), xytext=(0, 6), textcoords="offset points", ha="center",
                          fontsize=style.SMALL, color=style.INK if ratio >= 1 else colour)  # fmt: skip
            ends += [ratio, *bounds]
        axes.set_xscale("log")
        axes.set_xlim(min(ends) / 1.3, max(*ends, 2.0) * 1.3)
        axes.xaxis.set_major_locator(FixedLocator(_ratio_ticks(*axes.get_xlim())))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.set_yticks(range(len(tasks)), [visible(task["task"]) for task in tasks], fontsize=style.NORMAL)
        axes.set_ylim(len(tasks) - 0.4, -0.7)
        axes.set_xlabel("base / sparse (log scale)")
    return figure


def _ratio_ticks(low: float, high: float) -> list[float]:
    """Round ratios, closer together where the range is less than a decade."""
    if high > 10 * low:
        return style.log_ticks(low, high)
    return [tick for tick in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20) if low <= tick <= high]


def circuit_drawing(task: Mapping[str, Any], side: str, most: int = DRAWN) -> Figure:
    """The strongest edges of one model's circuit; layers go upward, width and strength of colour are |score|."""
    model = task[side]
    grid, edges = Grid.of(model["shape"]), circuit_edges(model, most)
    pitch = float(np.clip(8.0 / grid.top, 0.22, 0.75))
    count, share = model["circuit"]["count"], percent(model["circuit"]["share"])
    what = f"The {len(edges)} strongest of {count:,} edges" if len(edges) < count else f"All {count:,} edges"
    figure = style.new_figure(6.2, pitch * (grid.top + 0.8) + 1.3, f"{visible(task['task'])}, {side} model")
    axes = style.plain_axes(figure.subplots(), grid=False)
    style.heading(axes, f"{what} that keep {share} of the effect", bold=False)
    _draw_edges(axes, edges)
    _draw_nodes(axes, grid, edges)
    axes.set_xlim(-0.8, grid.mlp_x + 1.3)
    axes.set_ylim(-0.5, grid.top + 0.5)
    heads = list(range(0, grid.heads, -(-grid.heads // 16)))
    axes.set_xticks([*heads, grid.mlp_x], [*map(str, heads), "MLP"])
    layers = list(range(0, grid.layers, -(-grid.layers // 32)))
    axes.set_yticks([layer + 1 for layer in layers], list(map(str, layers)))
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    present = {edge.reader.kind for edge in edges}
    lines = [Line2D([], [], color=colour, linewidth=2) for kind, (colour, _) in READERS.items() if kind in present]
    words = [label for kind, (_, label) in READERS.items() if kind in present]
    figure.legend(lines, words, loc="outside lower center", ncols=5, frameon=False, fontsize=style.SMALL,
                  labelcolor=style.INK, handlelength=1.4, columnspacing=1.2)  # fmt: skip
    return figure


def _draw_edges(axes: Axes, edges: Sequence[Edge]) -> None:
    t = np.linspace(0, 1, 25)[:, None]
    strongest = max((abs(edge.score) for edge in edges), default=0.0) or 1.0
    lines, colours, widths = [], [], []
    for edge in reversed(edges):  # the strongest on top
        a, b, c, d = np.array(curve(edge))[:, None]
        lines.append((1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d)
        strength = (abs(edge.score) / strongest) ** 0.5
        colours.append((READERS[edge.reader.kind][0], 0.25 + 0.7 * strength))
        widths.append(0.4 + 2.6 * strength)
    axes.add_collection(LineCollection(lines, colors=colours, linewidths=widths, capstyle="round", zorder=2))


def _draw_nodes(axes: Axes, grid: Grid, edges: Sequence[Edge]) -> None:
    """All heads and MLPs as dots, those of the circuit as boxes with the head's number."""
    heads, layers = np.meshgrid(np.arange(grid.heads), np.arange(grid.layers) + 1.0)
    axes.scatter(heads, layers, s=4, color=style.FAINT, zorder=1, linewidths=0)
    axes.scatter(
        np.full(grid.layers, grid.mlp_x), layers[:, 0] + MLP_LIFT, s=4, color=style.FAINT, zorder=1, linewidths=0
    )
    own = {edge.writer.name for edge in edges} | {"embedding", "logits"}
    own |= {edge.reader.nodes[0] for edge in edges if edge.reader.kind in ("query", "mlp")}
    for name in sorted(own | {name for edge in edges for name in edge.reader.nodes}):
        place = grid.place(name)
        ink = style.INK if name in own else "#A7B1BC"  # pale: there only through shared keys and values
        label = {"head": name.rpartition(".")[2], "mlp": name.rpartition(" ")[2]}.get(place.kind, place.kind)
        half = 0.34 if place.kind in ("head", "mlp") else 1.1 * max(1.0, grid.heads / 9)
        axes.add_patch(FancyBboxPatch(
            (place.x - half, place.y - 0.2), 2 * half, 0.4, boxstyle="round,pad=0,rounding_size=0.15",
            facecolor=style.PAPER if place.kind == "head" else style.CLOSED, edgecolor=ink, linewidth=0.8, zorder=3,
        ))  # fmt: skip
        if grid.heads <= 24 or place.kind in ("embedding", "logits"):
            axes.text(place.x, place.y - 0.01, label, ha="center", va="center_baseline", color=ink, zorder=4,
                      fontsize=6.5 if len(label) < 4 else style.SMALL)  # fmt: skip
    for shared in {edge.reader.nodes: edge.reader for edge in edges if edge.reader.kind in ("key", "value")}.values():
        _draw_bar(axes, grid, shared)


def _draw_bar(axes: Axes, grid: Grid, reader: Place) -> None:
    """Below the heads that share keys and values: where edges into those arrive."""
    xs = [grid.place(name).x for name in reader.nodes]
    axes.plot([min(xs) - 0.3, max(xs) + 0.3], [reader.y, reader.y], color=style.INK, linewidth=1.0, zorder=3)
