"""Numbers and tokens as text for plots, pages and tables."""

import math
import unicodedata

MISSING = "-"


def number(value: object) -> float | None:
    """`value` as a finite float, or None if it is none (None, text, NaN, infinity)."""
    if value is None or isinstance(value, str):
        return None
    try:
        result = float(value)  # type: ignore[arg-type]  # numpy and torch scalars convert too
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def decimal(value: object, digits: int = 3) -> str:
    """A number with a fixed number of digits: 2.861."""
    found = number(value)
    return MISSING if found is None else f"{found:.{digits}f}"


def signed(value: object, digits: int = 3) -> str:
    """A number with its sign: +0.023, never -0.000."""
    found = number(value)
    return MISSING if found is None else f"{round(found, digits) + 0.0:+.{digits}f}"


def percent(fraction: object) -> str:
    """A fraction in percent with three significant digits: 34.1 %, 0.41 %."""
    found = number(fraction)
    return MISSING if found is None else f"{100 * found:.3g} %"


def count(value: object) -> str:
    """A count with separators: 82,000."""
    found = number(value)
    return MISSING if found is None else f"{round(found):,}"


def duration(seconds: object) -> str:
    """A duration: 12 min 3 s."""
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


def roughly(seconds: float) -> str:
    """An estimated duration: 40 s, 12 min or 2.5 h."""
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 120 * 60 else f"{seconds / 3600:.1f} h"


_SIGNS = {"\n": "↵", "\r": "↵", "\u2028": "↵", "\u2029": "↵", "\t": "⇥"}
_REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Bidirectional classes of characters that reorder the text after them."""


def visible(text: object) -> str:
    """`text` on one line and in its own order, with visible signs for control characters, line breaks, lone surrogates
    and characters that reorder text."""
    return "".join(_SIGNS.get(char) or ("\N{REPLACEMENT CHARACTER}" if _hidden(char) else char) for char in str(text))


def _hidden(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs") or unicodedata.bidirectional(char) in _REORDERING


def visible_token(token: str, width: int | None = None) -> str:
    """A token as a label: without its leading space, at most `width` characters, never empty."""
    text = visible(token.removeprefix(" "))
    if not text.strip():
        text = "␣" * max(1, len(text))
    return text if width is None or len(text) <= width else text[: width - 1] + "…"


def edge_share(fraction: object, sequence_length: object) -> str:
    """The share of open edges with the length at which it was measured: 2.23 % of the allowed ones, T = 256."""
    length = number(sequence_length)
    at = "" if length is None else f", T = {count(length)}"
    return f"{percent(fraction)} of the allowed ones{at}"


def edges_at_start(per_query: object, fraction: object) -> str:
    """Open edges per query and head before training, and their share: 22.10 (19.1 %)."""
    found = number(per_query)
    return MISSING if found is None else f"{found:.2f} ({percent(fraction)})"


def satisfied_text(satisfied: bool | None) -> str:
    """A truth value as "yes", "no" or "not known"."""
    return {True: "yes", False: "no", None: "not known"}[satisfied]
