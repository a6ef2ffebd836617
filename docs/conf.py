"""The documentation site: `sphinx-build -W --keep-going -b html docs build/docs`.

It is also read from file://, so nothing is fetched: formulas become MathML, fonts are the system's, search is Sphinx's.
Notebooks are run once and kept in build/notebooks, until their code changes.
"""

import os
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # of the notebooks' kernels

import lit_sparse  # noqa: E402

# Imported before autodoc does: it pretends to be a type checker at first, which misleads pydantic.
for name in lit_sparse.__all__:
    getattr(lit_sparse, name)

project, author, copyright = "lit_sparse", "the authors of lit_sparse", "the authors of lit_sparse, Apache-2.0"
version = release = lit_sparse.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["**.ipynb_checkpoints"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "notebooks")
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "groupwise"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # of Lightning, transformers and pydantic
default_role = "code"
maximum_signature_line_length = 88
napoleon_google_docstring, napoleon_numpy_docstring = True, False
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "furo"
html_title = "lit_sparse"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
pygments_style, pygments_dark_style = "friendly", "github-dark"
copybutton_exclude = ".linenos, .gp, .go"


def mathml(translator, node: nodes.Node) -> None:  # type: ignore[no-untyped-def]
    """Browsers draw MathML themselves; no script and no font is loaded."""
    is_block = isinstance(node, nodes.math_block)
    translator.body.append(latex2mathml.tex2mathml(node.astext(), as_block=is_block))
    raise nodes.SkipNode


_CODE = re.compile(r"(``.+?``|`.+?`)", re.S)
_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example|Examples):")
_FIELD = re.compile(r"(`?\w+`?(?:, `?\w+`?)*): ")


def plain_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text with `code`, lists of `name: meaning` and indented examples; nothing else is markup."""
    paragraphs = [block.splitlines() for block in re.split(r"\n\s*\n", "\n".join(lines))]
    out: list[str] = []
    for paragraph in filter(None, paragraphs):
        outer = [line for line in paragraph if line[:1].strip()]
        if not outer:  # an example or a table of keys
            out += ["::", "", *paragraph]
        elif _SECTION.fullmatch(paragraph[0]):
            out += _escaped(paragraph)
        elif out and all(_FIELD.match(line) for line in outer):
            out += [
                re.sub(_FIELD, r"- **\1**: ", line) if line[:1].strip() else f"  {line.strip()}"
                for line in _escaped(paragraph)
            ]
        elif any(line.startswith("- ") for line in outer):
            out += _escaped(paragraph)
        else:
            out += [line.strip() for line in _escaped(paragraph)]
        out.append("")
    lines[:] = out


def _escaped(lines: list[str]) -> list[str]:
    pieces = _CODE.split("\n".join(lines))
    pieces[::2] = [re.sub(r"([*|])", r"\\\1", re.sub(r"(\w)_(?!\w)", r"\1\\_", piece)) for piece in pieces[::2]]
    return "".join(pieces).splitlines()


def skip_plain_fields(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Fields of named tuples are in the signature, and described in the class's docstring."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", inline_renderers=(mathml, None), block_renderers=(mathml, None))
    app.connect("autodoc-skip-member", skip_plain_fields)
    app.connect("autodoc-process-docstring", plain_text, priority=100)  # before napoleon
