"""The help of a command, set to the width of the terminal."""

import shutil
import textwrap
from collections.abc import Sequence

WIDEST = 100
_NAMES = 26
"""Columns of the names of options, at most."""


def screen(title: str, text: str, example: str, blocks: Sequence[str], end: str = "") -> str:
    """A command's help: its name and summary, what it does, an example, blocks of options."""
    summary, _, rest = text.partition("\n\n")
    parts = [_filled(f"{title}: {summary}"), _filled(rest), f"  {example}", *blocks, _filled(end)]
    return "\n\n".join(part for part in parts if part) + "\n"


def block(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Options under a heading, a name and its help a row; empty without rows."""
    if not rows:
        return ""
    columns = max((len(name) for name, _ in rows if len(name) <= _NAMES), default=_NAMES)
    return "\n".join([f"{title}:", *(_row(name, help, columns) for name, help in rows)])


def width() -> int:
    """Columns that text may fill."""
    return min(WIDEST, max(60, shutil.get_terminal_size().columns))


def _row(name: str, help: str, columns: int) -> str:
    indent = " " * (columns + 4)
    lines = textwrap.wrap(help, width() - len(indent), break_on_hyphens=False)
    first = f"  {name:{columns}}  " if len(name) <= columns else f"  {name}\n{indent}"
    return first + f"\n{indent}".join(lines)


def _filled(text: str) -> str:
    return "\n".join(textwrap.fill(paragraph, width(), break_on_hyphens=False) for paragraph in text.splitlines())
