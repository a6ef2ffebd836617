"""What the table, the plots and the page of a comparison of circuits have in common: look-ups and wording."""

from collections.abc import Mapping, Sequence
from typing import Any

from lit_sparse.common.formatting import MISSING, decimal, number, percent

SIDES = ("base", "sparse")
LEVELS = ("head", "edge")
PLURAL = {"head": "heads", "edge": "edges"}

Details = Mapping[str, Any]
Comparison = Sequence[Mapping[str, Any]]


def headline_share(details: Details) -> float:
    """The share of the effect that the headline and the drawings are about: 0.9, or else the largest measured."""
    shares = details["shares"]
    return 0.9 if 0.9 in shares else max(shares)


def entry(comparison: Comparison, task: str, level: str, share: float) -> Mapping[str, Any]:
    """The comparison's row, empty where there is none."""
    wanted = (task, level, share)
    rows = (row for row in comparison if (row["task"], row["level"], row["fraction"]) == wanted)
    return next(rows, {})


def attention_edges(task: Mapping[str, Any], side: str, share: float) -> float | None:
    """Open attention edges per prompt inside the smallest circuit of heads; None where the share is not reached."""
    found = (task[side] or {}).get("attention_edges") or {}
    return next((number(value) for key, value in found.items() if float(key) == share), None)


def measured(details: Details) -> list[Mapping[str, Any]]:
    """The tasks that claims may rest on."""
    return [task for task in details["tasks"] if not task["skipped"]]


def ratios(details: Details, comparison: Comparison, level: str) -> list[float]:
    """The measured tasks' ratios at the headline share, ascending."""
    share = headline_share(details)
    found = (number(entry(comparison, task["task"], level, share).get("ratio")) for task in measured(details))
    return sorted(ratio for ratio in found if ratio is not None)


def size(value: object) -> str:
    """A mean number of heads or edges: 5,321 or 402, below 100 with the half of a mean: 59.3."""
    found = number(value)
    if found is None:
        return MISSING
    return f"{found:.1f}" if found < 100 and found != round(found) else f"{round(found):,}"


def times(ratio: object) -> str:
    """A ratio base / sparse in words, three significant digits: 13.2x fewer, and 4.33x more where it is 0.231."""
    found = number(ratio)
    if not found:
        return MISSING
    size = _significant(max(found, 1 / found), 3)
    return "as many" if size == "1.00" else f"{size}x {'fewer' if found > 1 else 'more'}"


def interval(row: Mapping[str, Any]) -> str:
    """The ratio's interval, the way round that `times` puts it: 9.1-18; empty where it is not known."""
    ratio, low, high = (number(row.get(key)) for key in ("ratio", "ratio_low", "ratio_high"))
    if not ratio or not low or not high:
        return ""
    if ratio < 1:
        low, high = 1 / high, 1 / low
    return f"{_significant(low, 2)}-{_significant(high, 2)}"


def smaller(row: Mapping[str, Any]) -> bool | None:
    """Whether the sparse model's circuit is the smaller one; None where the interval does not tell."""
    low, high = number(row.get("ratio_low")), number(row.get("ratio_high"))
    if low is None or high is None or low <= 1 <= high:
        return None
    return low > 1


def ratio_range(values: Sequence[float]) -> str:
    """Where ascending ratios lie: 1.40x to 4.50x fewer, 1.20x to 4.33x more, or 4.33x more to 1.20x fewer."""
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


def score_words(task: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, base, sparse) of the two models' abilities at a task."""
    base, sparse = (task[side] or {} for side in SIDES)
    return [
        ("accuracy", percent(base.get("accuracy")), percent(sparse.get("accuracy"))),
        ("log-odds", decimal(base.get("clean"), 2), decimal(sparse.get("clean"), 2)),
    ]


def _significant(value: float, digits: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:#.{digits}g}"
