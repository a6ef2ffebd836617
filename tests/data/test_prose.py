from itertools import islice

import pytest

from lit_sparse.data import prose
from lit_sparse.data.sources import parse_source


def test_topics_come_first_and_nothing_twice():
    documents = list(islice(prose.python_prose(), 120))
    assert documents == list(islice(prose.python_prose(), 120))
    assert len(set(documents)) == 120
    assert "statement" in documents[0]


def test_docstrings(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text(
        f'"""{"Module. " * 10}"""\nclass C:\n    """Short."""\n    def f():\n'
        f'        """First line.\n\n            {"Indented. " * 10}\n        Last.\n        """\n'
    )
    (tmp_path / "b.py").write_text(f'"""{"Module. " * 10}"""\n')
    (tmp_path / "broken.py").write_text("def (:")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.py").write_text(f'"""{"Test. " * 20}"""\n')
    monkeypatch.setattr(prose.sysconfig, "get_path", lambda name: str(tmp_path))
    found = [text for text in prose.python_prose(min_chars=60) if text.startswith(("Module.", "First", "Test."))]
    assert found == [("Module. " * 10).strip(), "First line.\n\n    " + ("Indented. " * 10) + "\nLast."]


def test_fingerprint_follows_the_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(prose.sysconfig, "get_path", lambda name: str(tmp_path))
    before = prose.fingerprint(prose.stdlib_sources())
    (tmp_path / "a.py").write_text("pass")
    assert prose.fingerprint(prose.stdlib_sources()) != before


def test_the_docstrings_of_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "some_package" / "part").mkdir(parents=True)
    (tmp_path / "some_package" / "__init__.py").write_text(
        f'"""{"Package. " * 10}"""\nraise RuntimeError("imported")\n'
    )
    (tmp_path / "some_package" / "part" / "a.py").write_text(f'"""{"Part. " * 20}"""\n')
    monkeypatch.syspath_prepend(tmp_path)
    source = parse_source("docs:some_package")
    documents = list(prose.package_prose("some_package", min_chars=60))
    assert documents == [("Package. " * 10).strip(), ("Part. " * 20).strip()]
    before = source.fingerprint()
    (tmp_path / "some_package" / "part" / "b.py").write_text("pass")
    assert source.fingerprint() != before
    assert list(source.documents()) == []  # all shorter than a block


def test_the_source_files_of_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "coded" / "tests").mkdir(parents=True)
    (tmp_path / "coded" / "__init__.py").write_text("x = 1\n\n\ny = x\n")
    (tmp_path / "coded" / "tests" / "a.py").write_text("left out")
    (tmp_path / "coded" / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"))
    (tmp_path / "coded" / "long.py").write_text("\n".join(f"z = {i}" for i in range(4000)))
    monkeypatch.syspath_prepend(tmp_path)
    source = parse_source("code:coded")
    first, *rest = source.documents()
    assert first == "x = 1\n\n\ny = x"
    assert len(rest) == 2 and "\n".join(rest) == (tmp_path / "coded" / "long.py").read_text()
    before = source.fingerprint()
    assert before != parse_source("docs:coded").fingerprint()  # other text of the same files
    (tmp_path / "coded" / "b.py").write_text("pass")
    assert source.fingerprint() != before


@pytest.mark.parametrize("name", ["no_such_package", "a.b", "../x"])
def test_a_package_that_is_not_there(name):
    with pytest.raises(ValueError, match=f"docs:{name}.*no Python package"):
        parse_source(f"docs:{name}").fingerprint()
    with pytest.raises(ValueError, match=f"code:{name}.*no Python package"):
        list(parse_source(f"code:{name}").documents())
