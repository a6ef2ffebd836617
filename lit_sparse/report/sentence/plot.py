"""The circuit of a sentence as a picture: its edges over positions and layers, models side by side."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from lit_sparse.common.formatting import visible, visible_token
from lit_sparse.records.sentence_circuit import SentenceCircuit, SentenceCircuits
from lit_sparse.report.sentence.layout import Layout, Line, lay_out
from lit_sparse.report.sentence.words import headline, quoted
from lit_sparse.report.shared import style

LABEL_WIDTH = 14
TITLE_CHARACTERS = 9.5  # an inch
BEND = 0.34  # of a row, between two lines of the same places
ALONG = (0.5, 0.36, 0.64, 0.24, 0.76)  # where on a line its name may stand, the best place first
NAME_WIDTH, NAME_HEIGHT = 0.058, 0.13  # inches a character, and a line of names
UNUSED = "#A5ADB8"
_CAPTION = (
    "A line is an edge, named layer.head. It starts below at its key and ends above at its query.\n"
    "The wider it is, the larger the loss without it. The circuit does better without an orange edge."
)


def circuit_figure(circuits: SentenceCircuits) -> Figure:
    """Every edge as a line from the position it reads, below its layer, to the one that reads, above it."""
    layouts = [lay_out(circuit) for circuit in circuits.circuits]
    rows = max(1, *(len(layout.layers) for layout in layouts))
    tokens = max(len(circuit.tokens) for circuit in circuits.circuits)
    width = float(np.clip(0.5 * tokens + 1.2, 5.4, 13.0))
    row = float(np.clip(8.0 / rows, 0.42, 0.7))
    first = circuits.circuits[0]
    prompt, answer = visible(first.prompt), visible_token(first.answer, LABEL_WIDTH)
    room = int(TITLE_CHARACTERS * width * len(layouts)) - len(answer) - 3
    title = f"{prompt if len(prompt) <= room else '…' + prompt[1 - room :]} → {answer}"
    figure = style.new_figure(width * len(layouts), max(3.6, row * rows + 2.6), title)
    figure.supxlabel(_CAPTION, fontsize=style.SMALL, color=style.GREY, x=0.01, ha="left")
    panels = figure.subplots(1, len(layouts), squeeze=False)[0]
    for axes, circuit, layout in zip(panels, circuits.circuits, layouts, strict=True):
        _panel(axes, circuit, layout)
        _lines(
            axes, layout, inches=((width - 0.9) / max(1, len(circuit.tokens)), row * rows / max(1, len(layout.layers)))
        )
    return figure


def _panel(axes: Axes, circuit: SentenceCircuit, layout: Layout) -> None:
    """Everything but the edges."""
    style.plain_axes(axes, grid=False)
    share, reached = headline(circuit).split(": ")
    name = visible(circuit.model)
    name = name if len(name) <= 40 else "…" + name[-39:]
    style.heading(axes, f"{circuit.kind.capitalize()} model: {name}\n{share}:\n{reached}")
    last, top = len(circuit.tokens) - 1, len(layout.layers)
    for row in range(0, top, 2):
        axes.axhspan(row, row + 1, color=style.CLOSED, alpha=0.55, linewidth=0, zorder=0)
    for position, height in enumerate(layout.streams):
        if height is not None:
            axes.plot([position, position], [0, height], color=style.FAINT, linewidth=1.1, zorder=1)
    axes.plot([last], [top], "o", color=style.INK, markersize=5, zorder=4)
    axes.annotate(
        quoted(circuit.answer, LABEL_WIDTH), (last, top), xytext=(4, 8), textcoords="offset points", ha="right",
        fontsize=style.NORMAL, fontweight="bold", color=style.INK, parse_math=False,
    )  # fmt: skip
    if not layout.lines:
        style.note(axes, "no edges")
    axes.set_xlim(-0.7, last + 0.7)
    axes.set_ylim(-0.15, max(1, top) + 0.55)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([row + 0.5 for row in range(top)], [str(layer) for layer in layout.layers])
    axes.tick_params(length=0)
    axes.set_ylabel("layer")
    names = [f"{visible_token(token, LABEL_WIDTH)} ({place})" for place, token in enumerate(circuit.tokens)]
    axes.set_xticks(
        range(len(names)), names, rotation=90, fontsize=float(np.clip(260 / max(1, len(names)), 4, style.NORMAL))
    )
    for label, height in zip(axes.get_xticklabels(), layout.streams, strict=True):
        label.set_parse_math(False)  # "$" is a token, not a formula
        label.set_color(UNUSED if height is None else style.INK)


def _lines(axes: Axes, layout: Layout, inches: tuple[float, float]) -> None:
    """The edges, and their names where these fit. inches: about the width of a position and the height of a row."""
    strongest = max((abs(line.edge.effect) for line in layout.lines), default=0.0) or 1.0
    taken: list[tuple[float, float, float]] = []
    for line in layout.lines:
        share = abs(line.edge.effect) / strongest
        colour = style.BLUE if line.edge.effect >= 0 else style.VERMILLION
        points = curve(line, inches)
        axes.add_patch(
            PathPatch(
                Path(points.tolist(), [Path.MOVETO, Path.CURVE3, Path.CURVE3]), fill=False, edgecolor=colour,
                linewidth=0.7 + 4.3 * share, alpha=0.35 + 0.6 * float(np.sqrt(share)), capstyle="round", zorder=2,
            )
        )  # fmt: skip
        if layout.labelled:
            name = f"{line.edge.layer}.{line.edge.head}"
            x, y = _free_place(points, len(name), inches, taken)
            axes.text(
                x, y, name, ha="center", va="center", fontsize=6.5, color=style.INK, zorder=3,
                bbox={"boxstyle": "round,pad=0.12", "facecolor": style.PAPER, "edgecolor": colour, "linewidth": 0.5},
            )  # fmt: skip


def curve(line: Line, inches: tuple[float, float]) -> np.ndarray:
    """Start, control point and end of a line, bent at a right angle to its way."""
    scale = np.array(inches)
    start = np.array([line.edge.key, line.row], dtype=np.float64)
    end = np.array([line.edge.query, line.row + 1], dtype=np.float64)
    way = (end - start) * scale
    across = np.array([-way[1], way[0]]) / np.hypot(*way)
    control = (start + end) / 2 + 2 * BEND * line.bend * inches[1] * across / scale
    return np.stack([start, control, end])


def _free_place(
    points: np.ndarray, characters: int, inches: tuple[float, float], taken: list[tuple[float, float, float]]
) -> tuple[float, float]:
    """Point of a line at which a name covers the least of the names drawn so far."""
    half = NAME_WIDTH * characters / 2 + 0.03
    found: list[tuple[float, float, float]] = []
    for t in ALONG:
        x, y = (1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]
        covered = sum(
            max(0.0, half + other - abs(x - a) * inches[0]) * max(0.0, NAME_HEIGHT - abs(y - b) * inches[1])
            for a, b, other in taken
        )
        found.append((covered, float(x), float(y)))
        if not covered:
            break
    _, x, y = min(found, key=lambda place: place[0])
    taken.append((x, y, half))
    return x, y
