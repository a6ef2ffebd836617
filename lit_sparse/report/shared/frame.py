"""What every page has around its content: works offline, loads nothing, runs no script but its own."""

from collections.abc import Sequence
from importlib.resources import files

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def html_page(title: str, body: str, *, styles: Sequence[str], scripts: Sequence[str]) -> str:
    """The whole page.

    Args:
        title: already escaped, as is all of `body`.
        styles, scripts: names of files in `assets/`, which go into the page; page.css comes first by itself.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{"".join(_asset(name) for name in ("page.css", *styles))}</style>
</head>
<body>
<main>
{body}
</main>
<script>
{"".join(_asset(name) for name in scripts)}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return files("lit_sparse.report.shared").joinpath("assets", name).read_text(encoding="utf-8")
