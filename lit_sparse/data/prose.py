"""English text on every machine with Python: its language reference, and the docstrings of the standard library and of
installed packages."""

import ast
import hashlib
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "pydoc_data", "__pycache__"}
)
"""Folders that are not read: tests, other people's packages, generated text."""

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def python_prose(min_chars: int = 1500) -> Iterator[str]:
    """Documents of a few hundred to ten thousand characters, no two the same, in an order that never changes.

    First the topics of `help()` (`pydoc_data.topics`: the language reference), then, file by file, the
    docstrings of the standard library. Sources are parsed, never imported; a file that does not parse is
    skipped. It takes about four seconds in all.

    Args:
        min_chars: docstrings shorter than this are left out.
    """
    from pydoc_data.topics import topics

    yield from _distinct(chain((topics[name].strip() for name in sorted(topics)), _all(stdlib_sources(), min_chars)))


def package_prose(package: str, min_chars: int = 1500) -> Iterator[str]:
    """The docstrings of an installed package, file by file, as `python_prose` gives those of the standard library.

    Raises:
        ValueError: the package is not installed, or has no Python source.
    """
    yield from _distinct(_all(package_sources(package), min_chars))


def fingerprint(sources: Iterable[Path]) -> str:
    """Hash that changes when the documents of these files may have changed: of the Python build, their paths and sizes,
    and this file."""
    digest = hashlib.sha256(sys.version.encode())
    digest.update(Path(__file__).read_bytes())
    for path in sources:
        digest.update(f"{path} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def stdlib_sources() -> list[Path]:
    """The source files of the standard library, sorted, without `SKIPPED_FOLDERS`."""
    return _sources(Path(sysconfig.get_path("stdlib")))


def package_sources(package: str) -> list[Path]:
    """The source files of an installed package, sorted, without `SKIPPED_FOLDERS`. The package is not imported.

    Raises:
        ValueError: as `package_prose`.
    """
    spec = find_spec(package) if package.isidentifier() else None
    sources = [path for folder in (spec and spec.submodule_search_locations) or () for path in _sources(Path(folder))]
    if not sources:
        raise ValueError(
            f"'docs:{package}' or 'code:{package}' in data.sources: no Python package {package!r} is installed here"
        )
    return sources


def _sources(folder: Path) -> list[Path]:
    paths = []
    for parent, subfolders, files in os.walk(folder):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        paths += [Path(parent, name) for name in files if name.endswith(".py")]
    return sorted(paths)


def _distinct(documents: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for document in documents:
        if document not in seen:
            seen.add(document)
            yield document


def _all(sources: Iterable[Path], min_chars: int) -> Iterator[str]:
    for path in sources:
        yield from _docstrings(path, min_chars)


def _docstrings(path: Path, min_chars: int) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in somebody else's file
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            docstring = ast.get_docstring(node, clean=True)
            if docstring is not None and len(docstring) >= min_chars:
                yield docstring.strip()
