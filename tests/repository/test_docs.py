"""README is short, and README and the documentation point only to what exists."""

import re
from pathlib import Path

import pytest

from tests.repository.reading_order import pages

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PROSE = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]


def test_readme_is_short():
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert sum(len(line.split()) for line in lines) <= 1000
    assert max(map(len, lines)) <= 120


def targets(page: Path) -> list[str]:
    """Relative links and pictures, without those in code."""
    text = re.sub(r"^```\w*\n.*?^```|`[^`\n]+`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"<img[^>]* src=\"([^\"]+)\"", text)
    return [target.partition("#")[0] for target in found if not re.match(r"[a-z]+:|#", target)]


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_and_pictures_exist(page):
    missing = [target for target in targets(page) if not (page.parent / target).exists()]
    assert not missing


def test_every_page_is_in_the_table_of_contents_once():
    reached = pages(DOCS / "index.md")
    assert len(reached) == len(set(reached))
    assert set(reached) == set(DOCS.rglob("*.md"))


def test_every_picture_is_shown():
    shown = {(page.parent / target).resolve() for page in PROSE for target in targets(page)}
    assert {path.resolve() for path in DOCS.rglob("*.png")} <= shown


def test_a_link_to_nothing_is_found(tmp_path):
    (tmp_path / "page.md").write_text(
        "[here](page.md#there) [gone](gone.md) ![](gone.png) `[no](code.md)` [web](https://a.b)"
    )
    assert targets(tmp_path / "page.md") == ["page.md", "gone.md", "gone.png"]
