"""The figures at the head of a page."""

from typing import NamedTuple


class Tile(NamedTuple):
    """A figure with what it is and what belongs to it; `css`: its class, such as that of a warning."""

    label: str
    value: str
    more: str
    css: str = ""
