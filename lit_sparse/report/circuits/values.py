"""Look-ups and wording of a comparison of circuits, for its table, plots and page."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lit_sparse.common.formatting import MISSING, decimal, percent
from lit_sparse.records.circuits import SIDES, Comparison, ComparisonRow, Level, Side, SizeCurve, TaskResult

PLURAL: dict[Level, str] = {"head": "heads", "edge": "edges"}


class Kept(NamedTuple):
    """Numbers of heads or edges that keep a share of a task's effect, in words; a dash is not known.

    smaller: whether the sparse model's circuit is the smaller one; None where the interval does not tell.
    """

    base: str = MISSING
    sparse: str = MISSING
    ratio: str = MISSING
    interval: str = ""
    smaller: bool | None = None

    @classmethod
    def of(cls, found: Comparison, task: str, level: Level, share: float) -> "Kept":
        row = found.row(task, level, share)
        if row is None:
            return cls()
        return cls(size(row.base), size(row.sparse), times(row.ratio), interval(row), smaller(row))

    @property
    def css(self) -> str:
        """The class of the ratio."""
        return {True: "yes", False: "no", None: ""}[self.smaller]


def attention_edges(task: TaskResult, side: Side, share: float) -> float | None:
    """Open attention edges per prompt inside the smallest circuit of heads; None where the share is not reached."""
    model = task.of(side)
    return None if model is None else model.attention_edges.get(share)


def mean_curve(runs: Sequence[SizeCurve]) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of circuits and their faithfulness: the mean over seeds at every size that any of them measured, within the
    sizes that all of them reach."""
    start, end = max(run.sizes[0] for run in runs), min(run.sizes[-1] for run in runs)
    sizes = np.unique([size for run in runs for size in run.sizes if start <= size <= end])
    each = [np.interp(np.log1p(sizes), np.log1p(run.sizes), run.values) for run in runs]
    return sizes, np.mean(each, axis=0)


def ratios(found: Comparison, level: Level) -> list[float]:
    """The measured tasks' ratios at the headline share, ascending."""
    rows = (found.row(task.task, level, found.result.headline_share) for task in found.result.measured)
    return sorted(row.ratio for row in rows if row is not None and row.ratio is not None)


def size(found: float | None) -> str:
    """A mean number of heads or edges: 5,321 or 402, below 100 with one decimal where it is not whole: 59.3."""
    if found is None:
        return MISSING
    return f"{found:.1f}".removesuffix(".0") if found < 100 else f"{round(found):,}"


def times(ratio: float | None) -> str:
    """A ratio base / sparse in words, three significant digits: 13.2x fewer, and 4.33x more where it is 0.231."""
    if not ratio:
        return MISSING
    size = _significant(max(ratio, 1 / ratio), 3)
    return "as many" if size == "1.00" else f"{size}x {'fewer' if ratio > 1 else 'more'}"


def interval(row: ComparisonRow) -> str:
    """The ratio's interval, the way round that `times` puts it: 9.1-18; empty where it is not known."""
    ratio, low, high = row.ratio, row.ratio_low, row.ratio_high
    if not ratio or not low or not high:
        return ""
    if ratio < 1:
        low, high = 1 / high, 1 / low
    return f"{_significant(low, 2)}-{_significant(high, 2)}"


def smaller(row: ComparisonRow) -> bool | None:
    """True if the sparse model's circuit is the smaller one; None where the interval does not tell."""
    low, high = row.ratio_low, row.ratio_high
    if low is None or high is None or low <= 1 <= high:
        return None
    return low > 1


def ratio_range(values: Sequence[float]) -> str:
    """Range of ascending ratios: 1.40x to 4.50x fewer, 1.20x to 4.33x more, or 4.33x more to 1.20x fewer."""
    if not values:
        return MISSING
    first, last = (times(values[end]) for end in ((-1, 0) if values[-1] < 1 else (0, -1)))
    if first == last:
        return first
    number, _, word = first.partition(" ")
    return f"{number if last.endswith(f'x {word}') else first} to {last}"


def tile_class(values: Sequence[float]) -> str:
    """The class of a tile with ascending ratios: that of a warning where the sparse model needs more somewhere."""
    return "no" if values and values[0] < 1 else ""


def score_words(task: TaskResult) -> list[tuple[str, str, str]]:
    """(what, base, sparse) of the two models' abilities at a task, as far as they are known."""
    models = [task.of(side) for side in SIDES]
    accuracy = [percent(model and model.accuracy) for model in models]
    clean = [decimal(model and model.clean, 2) for model in models]
    words = [("accuracy", *accuracy), ("log-odds", *clean)]
    return [(what, a, b) for what, a, b in words if (a, b) != (MISSING, MISSING)]


def _significant(value: float, digits: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:#.{digits}g}"
