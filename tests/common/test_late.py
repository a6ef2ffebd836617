"""Functions lent by name, and calls that wait for an import."""

import importlib
import sys

import pytest

from lit_sparse.common.late import lend, lent, when_imported


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A module `waited_for`, and `waiting` with a function that notes what it finds there."""
    (tmp_path / "waited_for.py").write_text("value = 1\nvalue += 1\n")
    (tmp_path / "waiting.py").write_text("import waited_for\nseen = []\ndef look(): seen.append(waited_for.value)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield
    for name in ("waited_for", "waiting"):
        sys.modules.pop(name, None)


def test_a_call_waits_for_the_import(modules):
    finders = len(sys.meta_path)
    when_imported("waited_for", "waiting:look")
    assert "waiting" not in sys.modules
    importlib.import_module("waited_for")
    assert importlib.import_module("waiting").seen == [2]
    assert len(sys.meta_path) == finders
    importlib.reload(sys.modules["waited_for"])
    assert sys.modules["waiting"].seen == [2]


def test_what_is_imported_already_is_not_waited_for(modules):
    importlib.import_module("waited_for")
    when_imported("waited_for", "waiting:look")
    assert sys.modules["waiting"].seen == [2]


def test_a_function_is_imported_when_it_is_borrowed(modules):
    lend("look", "waiting:look")
    assert "waiting" not in sys.modules
    lent("look")()
    assert sys.modules["waiting"].seen == [2]
