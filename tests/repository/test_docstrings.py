"""A docstring's first line names the thing: no question, and no sentence whose subject is missing."""

import ast
import importlib
import inspect
import re
from functools import cache

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "lit_sparse"
OPENINGS = re.compile(r"(What|How|Where|Whether|Which|Why|Who|When|Of|By|For|Inside)\b")

# Rooms whose docstrings still have such openings, and how many. The numbers only fall.
LEFT: dict[str, int] = {}

DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _module_name(file):
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _walk(node, path):
    """A module, class or function and its public classes and functions, as (path of names, node)."""
    yield path, node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, DEFINITIONS) and not child.name.startswith("_"):
            yield from _walk(child, (*path, child.name))


@cache
def _docstrings():
    """The docstring, or None, of every public definition in the package, by module and path of names."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for path, node in _walk(ast.parse(file.read_text(encoding="utf-8")), ()):
            found[_module_name(file), path] = ast.get_docstring(node)
    return found


def _room(module):
    return module.split(".")[1] if "." in module else ""


def _packages():
    return [_module_name(file) for file in sorted(PACKAGE.rglob("__init__.py"))]


def test_first_lines_name_the_thing():
    wrong = [
        (module, f"{'.'.join((module, *path))}: {text.splitlines()[0]}")
        for (module, path), text in _docstrings().items()
        if text and OPENINGS.match(text)
    ]
    by_room = {room: [line for module, line in wrong if _room(module) == room] for room in {_room(m) for m, _ in wrong}}
    over = {room: lines for room, lines in by_room.items() if len(lines) > LEFT.get(room, 0)}
    assert not over, "\n".join(line for lines in over.values() for line in lines)


def test_first_lines_are_there():
    """No docstring begins with its section of arguments or errors."""
    sections = re.compile(r"(Args|Raises|Returns|Attributes):")
    found = [(module, path) for (module, path), text in _docstrings().items() if text and sections.match(text)]
    assert not [".".join((module, *path)) for module, path in found if _room(module) not in LEFT]


@pytest.mark.parametrize("package", _packages())
def test_exported_names_are_documented(package):
    module = importlib.import_module(package)
    missing = []
    for name in getattr(module, "__all__", ()):
        thing = inspect.unwrap(getattr(module, name))
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue  # values, and operators of libraries
        where = thing.__module__, tuple(thing.__qualname__.split("."))
        if where[0].startswith("lit_sparse") and not _docstrings().get(where):
            missing.append(f"{package}.{name}")
    assert not missing
