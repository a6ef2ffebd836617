"""Pages come from the templates in `templates/` and from nowhere else: there every value is escaped."""

import base64
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lit_sparse.common import formatting
from lit_sparse.common.files import write_atomically
from lit_sparse.report.shared.page_data import json_for_html


def render(template: str, **values: Any) -> str:
    """A page as text.

    Args:
        template: a file in `templates/`.
        values: what it names.
    """
    return _ENVIRONMENT.get_template(template).render(values)


def write_html(html: str, path: str | os.PathLike[str]) -> Path:
    """Replace the file as a whole, and give its path."""
    path = Path(path)
    write_atomically(path, html.encode())
    return path


def asset(name: str) -> Markup:
    """A file of `assets/`, to stand inside a page's style or script element."""
    return Markup(files("lit_sparse.report.shared").joinpath("assets", name).read_text(encoding="utf-8"))


def _json(value: object) -> Markup:
    return Markup(json_for_html(value))


def _picture(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


_ENVIRONMENT = Environment(
    loader=PackageLoader("lit_sparse.report.shared"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.globals["asset"] = asset
_ENVIRONMENT.filters |= {"json": _json, "picture": _picture, "token": formatting.visible_token}
_ENVIRONMENT.filters |= {
    name: getattr(formatting, name) for name in ("count", "decimal", "duration", "percent", "signed", "visible")
}
