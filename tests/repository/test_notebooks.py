"""The notebooks as they are kept: without outputs, and with checks. The documentation's build executes them."""

import ast
import json

import pytest

from tests.conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "docs/notebooks").glob("*.ipynb"))


def code_of(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_four():
    assert [path.stem for path in NOTEBOOKS] == ["find_a_circuit", "load_and_look", "make_sparse", "read_a_graph"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_and_some_checks(path):
    cells = code_of(path)
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None]
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells))
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert len(checks) >= 4, "a notebook whose numbers are wrong has to stop"
    first = "".join(cells[0]["source"])
    assert first.startswith("import lit_sparse\n\nlit_sparse.quiet()"), "before any library is imported"
