"""Numbers and tokens as people read them; shared by the plots, the page and the table."""

import math
import unicodedata
from collections.abc import Mapping

MISSING = "-"
CONSTRAINT_NAMES = {
    "kl": "KL divergence from the base model",
    "paired": "cross-entropy above the base model's",
    "absolute": "cross-entropy",
}


def number(value: object) -> float | None:
    """`value` as a finite float, None for whatever is not one (None, text, NaN, infinity)."""
    if value is None or isinstance(value, str):
        return None
    try:
        result = float(value)  # type: ignore[arg-type]  # numpy and torch scalars convert too
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def decimal(value: object, digits: int = 3) -> str:
    """2.861"""
    found = number(value)
    return MISSING if found is None else f"{found:.{digits}f}"


def signed(value: object, digits: int = 3) -> str:
    """+0.023; never -0.000."""
    found = number(value)
    return MISSING if found is None else f"{round(found, digits) + 0.0:+.{digits}f}"


def percent(fraction: object) -> str:
    """A fraction in percent with three significant digits: 34.1 %, 0.41 %."""
    found = number(fraction)
    return MISSING if found is None else f"{100 * found:.3g} %"


def count(value: object) -> str:
    """82,000"""
    found = number(value)
    return MISSING if found is None else f"{round(found):,}"


def duration(seconds: object) -> str:
    """12 min 3 s"""
    found = number(seconds)
    if found is None:
        return MISSING
    if found < 10:
        return f"{found:.1f} s"
    whole = round(found)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def visible(text: object) -> str:
    """`text` on one line: control characters, line breaks and lone surrogates as visible signs."""
    signs = {"\n": "↵", "\r": "↵", "\t": "⇥"}
    return "".join(
        signs.get(char) or ("\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in ("Cc", "Cs") else char)
        for char in str(text)
    )


def visible_token(token: str, width: int | None = None) -> str:
    """A token as a label: its leading space dropped, at most `width` characters, never empty."""
    text = visible(token.removeprefix(" "))
    if not text.strip():
        text = "␣" * max(1, len(text))
    return text if width is None or len(text) <= width else text[: width - 1] + "…"


def ce_change(summary: Mapping[str, object]) -> float | None:
    """Cross-entropy of the sparse model minus that of the base model on the test split, nats per token."""
    ce, base = number(summary.get("ce")), number(summary.get("base_ce"))
    return None if ce is None or base is None else ce - base


def open_edges(summary: Mapping[str, object]) -> str:
    """A run's headline: 2.59 open edges per query and head (2.23 % of the allowed ones, T = 256)."""
    per_query = number(summary.get("edges_per_query"))
    return MISSING if per_query is None else f"{per_query:.2f} open edges per query and head ({edge_share(summary)})"


def edge_share(summary: Mapping[str, object]) -> str:
    """The share of open edges with the length that it was measured at: 2.23 % of the allowed ones, T = 256."""
    length = number(summary.get("sequence_length"))
    at = "" if length is None else f", T = {count(length)}"
    return f"{percent(summary.get('edge_fraction'))} of the allowed ones{at}"


def edges_at_start(summary: Mapping[str, object]) -> str:
    """Open edges per query and head before training, and their share: 22.10 (19.1 %)."""
    per_query = number(summary.get("edges_per_query_start"))  # older records measured it on the validation split
    return MISSING if per_query is None else f"{per_query:.2f} ({percent(summary.get('edge_fraction_start'))})"


def constraint_kind(summary: Mapping[str, object]) -> str | None:
    """The constraint's name: `kl`, `paired` or `absolute`."""
    kind = summary.get("constraint")
    return kind if isinstance(kind, str) else None


def constraint_value(summary: Mapping[str, object]) -> float | None:
    """The constraint's value on the test split."""
    return number(summary.get("constraint_value"))


def satisfied_text(summary: Mapping[str, object]) -> str:
    """yes, no, or not known."""
    satisfied = summary.get("satisfied")
    return "not known" if satisfied is None else "yes" if satisfied else "no"


def summary_rows(summary: Mapping[str, object]) -> list[tuple[str, str]]:
    """The summary as (label, value) rows; what is missing is a dash, what is optional is left out."""
    value, tolerance = constraint_value(summary), number(summary.get("tolerance"))
    if value is None or tolerance is None:
        comparison = f"{decimal(value)} (tolerance {decimal(tolerance)})"
    else:
        comparison = f"{decimal(value)} {'≤' if value <= tolerance else '>'} {decimal(tolerance)} (tolerance)"
    kind = constraint_kind(summary)
    rows = [
        ("Model", visible(summary.get("model") or MISSING)),
        ("Open edges per query and head", f"{decimal(summary.get('edges_per_query'), 2)} ({edge_share(summary)})"),
        ("… at the start", edges_at_start(summary)),
        (
            "CE, base → sparse",
            f"{decimal(summary.get('base_ce'))} → {decimal(summary.get('ce'))} "
            f"({signed(ce_change(summary))}) nats/token",
        ),
        ("KL from the base model", f"{decimal(summary.get('kl'))} nats/token"),
        (f"Constraint ({visible(kind)})" if kind else "Constraint", comparison),
        ("Constraint satisfied", satisfied_text(summary)),
    ]
    if number(summary.get("exact_match")) is not None:
        before = summary.get("base_exact_match")
        start = f"{percent(before)} → " if number(before) is not None else ""
        rows.append(("Exact match", start + percent(summary["exact_match"])))
    steps, tokens, seconds = (summary.get(key) for key in ("steps", "tokens", "seconds"))
    rows.append(("Training", f"{count(steps)} steps, {count(tokens)} tokens, {duration(seconds)}"))
    return rows
