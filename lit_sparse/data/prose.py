"""English text on every machine with Python: its language reference and the standard library's docstrings."""

import ast
import hashlib
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "pydoc_data", "__pycache__"}
)
"""Folders of the standard library that are not read: tests, other people's packages, generated text."""

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def python_prose(min_chars: int = 1500) -> Iterator[str]:
    """Documents of a few hundred to ten thousand characters, no two the same, in an order that never changes.

    First the topics of `help()` (`pydoc_data.topics`: the language reference), then, file by file, the
    docstrings of the standard library. Sources are parsed, never imported; a file that does not parse is
    skipped. Takes about four seconds in all.

    Args:
        min_chars: docstrings shorter than this are left out.
    """
    seen: set[str] = set()
    for document in _all_documents(min_chars):
        if document not in seen:
            seen.add(document)
            yield document


def prose_fingerprint() -> str:
    """A hash that changes when the documents may have: of the Python build, its files' sizes, this file."""
    digest = hashlib.sha256(sys.version.encode())
    digest.update(Path(__file__).read_bytes())
    for path in stdlib_sources():
        digest.update(f"{path} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def stdlib_sources() -> list[Path]:
    """The source files of the standard library, sorted, without `SKIPPED_FOLDERS`."""
    paths = []
    for folder, subfolders, files in os.walk(sysconfig.get_path("stdlib")):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        paths += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(paths)


def _all_documents(min_chars: int) -> Iterator[str]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name].strip()
    for path in stdlib_sources():
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
