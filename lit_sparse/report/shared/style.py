"""The look of the plots: colours, axes and scales, set on each figure, never in matplotlib's global state."""

import math
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

# Okabe and Ito's palette, which stays apart under the common colour-vision deficiencies.
BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#6B7280"
INK, FAINT, CLOSED, PAPER = "#1F2933", "#D5DAE0", "#EEF0F3", "#FFFFFF"
DPI = 150
Values = Iterable[float] | np.ndarray
SMALL, NORMAL, LARGE = 7.5, 9.0, 11.0
LEGEND_HEIGHT = 19.0  # points, with the room around it

# One hue from light to dark: prints in grey, safe for every kind of colour vision.
WEIGHTS: Colormap = LinearSegmentedColormap.from_list(
    "weights", ["#CFE3F2", "#8FBFE0", "#3F8FC8", "#0B5C9E", "#08305F"]
)


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of `width` x `height` inches with a title, drawn by Agg whatever the machine has."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=LARGE, fontweight="bold", color=INK, x=0.01, ha="left", parse_math=False)
    return figure


def plain_axes(axes: Axes, title: str = "", grid: bool = True) -> Axes:
    """No frame above and to the right, quiet grid, small labels."""
    axes.set_facecolor(PAPER)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=SMALL, length=3, color=FAINT, which="both")
    axes.xaxis.label.set(color=INK, fontsize=NORMAL)
    axes.yaxis.label.set(color=INK, fontsize=NORMAL)
    if title:
        heading(axes, title)
    if grid:
        axes.grid(True, color=FAINT, linewidth=0.6, alpha=0.6)
        axes.set_axisbelow(True)
    return axes


def heading(axes: Axes, text: str, bold: bool = True, pad: float = 6.0) -> None:
    """A panel's title, at its left, `pad` points above the panel."""
    weight = "bold" if bold else "normal"
    axes.set_title(text, loc="left", fontsize=NORMAL, color=INK, fontweight=weight, pad=pad, parse_math=False)


def legend(axes: Axes) -> None:
    """A frameless legend of one line between the title and the panel, so that it covers neither data nor title."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, frameon=False, fontsize=SMALL,
            labelcolor=INK, borderpad=0.2, borderaxespad=0.1, handlelength=1.6, columnspacing=1.2,
        )  # fmt: skip
        if title := axes.get_title(loc="left"):
            heading(axes, title, pad=LEGEND_HEIGHT)


def note(axes: Axes, text: str) -> None:
    """Says in the middle of the panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=NORMAL)


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round values within [low, high], low > 0: 1-2-5 steps, or decades where these are too many."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    slack = 1 + 1e-9
    ticks: list[float] = []
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**e for e in decades for m in mantissas if low / slack <= m * 10.0**e <= high * slack]
        if len(ticks) <= most:
            break
    if len(ticks) > most:
        ticks = ticks[:: math.ceil(len(ticks) / most)]
    return ticks if len(ticks) >= 2 else sorted({low, high})


def percent_tick(fraction: float, _position: object = None) -> str:
    """A fraction as the label of a tick: 0.05 %, 20 %."""
    return f"{100 * fraction:.2g} %" if fraction < 0.995 else f"{100 * fraction:.3g} %"


def plain_tick(value: float, _position: object = None) -> str:
    """0.02, 50, 1000"""
    return f"{value:.4g}"


def log_axis(axes: Axes, values: Values, percent: bool = False) -> None:
    """A log y axis with round, readable ticks around the positive values."""
    positive = positives(values)
    if not positive.size:
        return
    low, high = float(positive.min()) / 1.25, float(positive.max()) * 1.25
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(percent_tick if percent else plain_tick))


def log_norm(values: Values) -> LogNorm:
    """A log colour scale over the positive values; a single value, or none, still gives a decade."""
    positive = positives(values)
    low, high = (float(positive.min()), float(positive.max())) if positive.size else (0.1, 1.0)
    return LogNorm(low if low < high / 1.05 else high / 10, high)


def log_bar(axes: Axes, norm: Normalize, tick: Callable[[float, object], str], label: str) -> None:
    """Round ticks and a label on the colour bar of a log scale."""
    low, high = float(norm.vmin or 0.1), float(norm.vmax or 1.0)
    axes.yaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(tick))
    bar_style(axes, label)


def bar_style(axes: Axes, label: str) -> None:
    """A colour bar as quiet as the axes."""
    axes.set_ylabel(label, fontsize=NORMAL, color=INK)
    axes.tick_params(labelsize=SMALL, colors=INK, color=FAINT, length=3, which="both")
    for spine in axes.spines.values():
        spine.set_visible(False)


def positives(values: Values) -> np.ndarray:
    """The finite values above 0, flat, float64."""
    array = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64).ravel()
    return array[np.isfinite(array) & (array > 0)]


def running_mean(values: Sequence[float]) -> np.ndarray:
    """Mean over a centred window of a twentieth of the series; NaN values are left out of it."""
    array = np.asarray(values, dtype=np.float64)
    half = max(1, len(array) // 40)
    windows = [array[max(0, i - half) : i + half + 1] for i in range(len(array))]
    return np.array([np.nan if np.isnan(window).all() else np.nanmean(window) for window in windows])


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as PNG at `dpi` pixels per inch, without metadata that changes from run to run."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
