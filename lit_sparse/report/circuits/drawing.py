"""One model's circuit as a picture: its strongest edges over layers and heads."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch

from lit_sparse.common.formatting import percent
from lit_sparse.records.circuits import Circuit, Shape
from lit_sparse.report.circuits.component_graph import MLP_LIFT, Edge, Grid, Place, circuit_edges, curve
from lit_sparse.report.shared import style

READERS = {
    "query": ("#8F4FBF", "into queries"),
    "key": ("#C98A00", "into keys"),
    "value": ("#1B8A5A", "into values"),
    "mlp": ("#94A0AC", "into MLPs"),
    "logits": (style.INK, "into the logits"),
}
DRAWN = 60  # edges in a picture; more become a tangle


def circuit_drawing(title: str, shape: Shape, circuit: Circuit, most: int = DRAWN) -> Figure:
    """The strongest edges of one model's circuit; layers go upward, width and strength of colour are |score|."""
    grid = Grid.of(shape)
    edges = circuit_edges(grid, circuit, most)
    pitch = float(np.clip(8.0 / grid.top, 0.22, 0.75))
    count, share = circuit.count, percent(circuit.share)
    what = f"The {len(edges)} strongest of {count:,} edges" if len(edges) < count else f"All {count:,} edges"
    figure = style.new_figure(6.2, pitch * (grid.top + 0.8) + 1.3, title)
    axes = style.plain_axes(figure.subplots(), grid=False)
    style.heading(axes, f"{what} of a circuit that keeps {share} of the effect", bold=False)
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
            number = len(label) < 4
            axes.text(
                place.x, place.y - 0.01, label, ha="center", va="center_baseline" if number else "center", color=ink,
                zorder=4, fontsize=6.5 if number else style.SMALL,
            )  # fmt: skip
    for shared in {edge.reader.nodes: edge.reader for edge in edges if edge.reader.kind in ("key", "value")}.values():
        _draw_bar(axes, grid, shared)


def _draw_bar(axes: Axes, grid: Grid, reader: Place) -> None:
    """Below the heads that share keys and values: where edges into those arrive."""
    xs = [grid.place(name).x for name in reader.nodes]
    axes.plot([min(xs) - 0.3, max(xs) + 0.3], [reader.y, reader.y], color=style.INK, linewidth=1.0, zorder=3)
