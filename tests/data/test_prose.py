from itertools import islice

from lit_sparse.data import prose


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
    before = prose.prose_fingerprint()
    (tmp_path / "a.py").write_text("pass")
    assert prose.prose_fingerprint() != before
