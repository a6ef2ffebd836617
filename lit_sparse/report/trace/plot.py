"""One prompt's trace as a picture: the shown edges over layers and positions, models side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from lit_sparse.common.formatting import count, decimal, visible, visible_token
from lit_sparse.records.trace import Trace, TraceEdges
from lit_sparse.report.shared import style

LABEL_WIDTH, TITLE_WIDTH = 14, 80
COLOURS = (style.BLUE, style.VERMILLION)  # of the first model and of what it is compared with


def trace_figure(traces: Sequence[Trace]) -> Figure:
    """The graph of every model's shown edges, the ablation of each token, and p(answer) over the edges kept."""
    first = traces[0]
    width = len(traces) * float(np.clip(0.3 * len(first.tokens) + 1.4, 5.0, 12.0))
    prompt = visible(first.prompt)
    prompt = prompt if len(prompt) <= TITLE_WIDTH else "…" + prompt[1 - TITLE_WIDTH :]
    figure = style.new_figure(max(width, 9.0), 10.6, f"{prompt} → {visible_token(first.answer, LABEL_WIDTH)}")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.7, 1])[:, 0]
    for axes, trace in zip(above.subplots(1, len(traces), squeeze=False)[0], traces, strict=True):
        _graph(axes, trace)
    left, right = below.subplots(1, 2)
    _cuts(left, traces)
    _ablations(right, traces)
    return figure


def merged(edges: TraceEdges) -> list[tuple[int, int, int, float]]:
    """(layer, query, key, contribution) with the heads of a layer taken together, the weakest first."""
    sums: dict[tuple[int, int, int], float] = {}
    for layer, query, key, contribution in zip(edges.layer, edges.query, edges.key, edges.contribution, strict=True):
        place = (int(layer), int(query), int(key))
        sums[place] = sums.get(place, 0.0) + float(contribution)
    return sorted(((*place, total) for place, total in sums.items()), key=lambda arc: abs(arc[3]))


def _graph(axes: Axes, trace: Trace) -> None:
    style.plain_axes(axes, grid=False)
    shown = trace.shown
    style.heading(
        axes,
        f"{trace.kind.capitalize()} model: {_short_name(trace.model)}\n"
        f"{count(shown.connected)} of {count(trace.open)} open edges kept ({count(trace.allowed)} allowed)\n"
        f"p(answer) = {decimal(shown.probability)}, with all open edges {decimal(trace.probability)}",
    )
    last = len(trace.tokens) - 1
    arcs = merged(trace.edges[: shown.edges])
    read = np.full(last + 1, -1)  # the last layer that reads a position
    for layer, _, key, _ in arcs:
        read[key] = max(read[key], layer)
    read[last] = trace.layers
    for position, layer in enumerate(read):
        if layer >= 0:
            axes.plot([position, position], [0, layer], color=style.FAINT, linewidth=1.0, zorder=1)
    strongest = max((abs(arc[3]) for arc in arcs), default=1.0)
    strength = np.array([abs(arc[3]) / strongest for arc in arcs])
    axes.add_collection(
        LineCollection(
            [[(key, layer), (query, layer + 1)] for layer, query, key, _ in arcs],
            colors=[style.BLUE if arc[3] > 0 else style.VERMILLION for arc in arcs],
            linewidths=0.35 + 4.2 * strength,
            alpha=np.clip(0.12 + 0.9 * np.sqrt(strength), 0, 0.95) if len(arcs) else None,
            capstyle="round",
            zorder=2,
        )
    )
    axes.plot([last], [trace.layers], "o", color=style.INK, markersize=5, zorder=3)
    axes.annotate(
        visible_token(trace.answer, LABEL_WIDTH), (last, trace.layers), xytext=(0, 7), textcoords="offset points",
        ha="right", fontsize=style.NORMAL, fontweight="bold", color=style.INK, parse_math=False,
    )  # fmt: skip
    axes.set_xlim(-0.7, last + 0.7)
    axes.set_ylim(-0.5, trace.layers + 1.8)
    _token_ticks(axes, trace, reached=read >= 0)
    axes.set_ylabel("layer")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _token_ticks(axes: Axes, trace: Trace, reached: np.ndarray) -> None:
    names = [visible_token(token, LABEL_WIDTH) for token in trace.tokens]
    size = float(np.clip(200 / max(1, len(names)), 4.0, style.SMALL))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    for label, reaches in zip(axes.get_xticklabels(), reached, strict=True):
        label.set_parse_math(False)  # "$" is a token, not a formula
        label.set_color(style.INK if reaches else "#B4BBC4")
    axes.tick_params(length=0, axis="x", pad=2)


def _cuts(axes: Axes, traces: Sequence[Trace]) -> None:
    style.plain_axes(axes, "Ablation of one token: all edges out of it closed")
    axes.axhline(0, color=style.GREY, linewidth=0.8)
    size = len(traces[0].tokens)
    wide = 0.8 / len(traces)
    for index, (trace, colour) in enumerate(zip(traces, COLOURS, strict=False)):
        places = np.arange(size) + wide * (index - (len(traces) - 1) / 2)
        axes.bar(places, trace.cut, wide, color=colour, label=trace.kind)
    axes.set_xlim(-0.7, size - 0.3)
    _token_ticks(axes, traces[0], np.ones(size, dtype=bool))
    axes.set_ylabel("change of log p(answer), nats")
    style.legend(axes)


def _ablations(axes: Axes, traces: Sequence[Trace]) -> None:
    style.plain_axes(axes, "Only the first edges kept, all others closed")
    most = 1
    for trace, colour in zip(traces, COLOURS, strict=False):
        points = [(a.edges, a.probability) for a in trace.ablations if a.edges]
        most = max(most, *(edges for edges, _ in points), 1)
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.3, marker=".", markersize=4,
                      label=trace.kind)  # fmt: skip
        axes.axhline(trace.keep * trace.probability, color=colour, linewidth=0.8, linestyle=":")
        axes.plot([max(1, trace.shown.edges)], [trace.shown.probability], "o", color=colour, markersize=6)
    axes.set_xscale("log")
    axes.set_xlim(0.9, most * 1.3)
    axes.xaxis.set_major_locator(FixedLocator([10**i for i in range(len(str(most)))]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"edges kept (log scale; large dot: circuit, dotted: {traces[0].keep:.0%} of p)")
    axes.set_ylabel("p(answer)")
    style.legend(axes)


def _short_name(name: str) -> str:
    text = visible(name)
    return text if len(text) <= 32 else "…" + text[-31:]
