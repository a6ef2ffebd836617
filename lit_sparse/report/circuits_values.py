"""What the table, the plots and the page of a comparison of circuits have in common: look-ups and wording."""

from collections.abc import Mapping, Sequence
from typing import Any

from lit_sparse.report.formatting import MISSING, decimal, number, percent

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


def times(value: object) -> str:
    """A ratio in three significant digits: 13.2x."""
    found = number(value)
    return MISSING if found is None else f"{_significant(found, 3)}x"


def interval(row: Mapping[str, Any]) -> str:
    """The ratio's interval: 9.1-18; empty where it is not known."""
    low, high = number(row.get("ratio_low")), number(row.get("ratio_high"))
    return "" if low is None or high is None else f"{_significant(low, 2)}-{_significant(high, 2)}"


def smaller(row: Mapping[str, Any]) -> bool | None:
    """Whether the sparse model's circuit is the smaller one; None where the interval does not tell."""
    low, high = number(row.get("ratio_low")), number(row.get("ratio_high"))
    if low is None or high is None or low <= 1 <= high:
        return None
    return low > 1


def ratio_range(values: Sequence[float]) -> str:
    """Where ascending ratios lie: 1.4x to 4.5x."""
    if not values:
        return MISSING
    ends = [times(values[0]), times(values[-1])]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def score_words(task: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, base, sparse) of the two models' abilities at a task."""
    base, sparse = (task[side] or {} for side in SIDES)
    return [
        ("accuracy", percent(base.get("accuracy")), percent(sparse.get("accuracy"))),
        ("log-odds", decimal(base.get("clean"), 2), decimal(sparse.get("clean"), 2)),
    ]


def _significant(value: float, digits: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:#.{digits}g}"
