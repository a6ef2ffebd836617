"""The pages of the documentation in the order of reading."""

import re
from pathlib import Path


def pages(page: Path) -> list[Path]:
    """A page of the documentation and all below it, as its tables of contents order them."""
    tables = re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    entries = [line for table in tables for line in table.split() if not line.startswith(":")]
    below = [found for entry in entries for found in sorted(page.parent.glob(f"{entry}.md")) if found != page]
    return [page, *(one for found in below for one in pages(found))]
