"""Plots in a page."""

from typing import NamedTuple


class Picture(NamedTuple):
    """A plot as PNG, and what it shows in words."""

    png: bytes
    alt: str
    caption: str
