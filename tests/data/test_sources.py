import gzip
import json

import pytest

from lit_sparse.data import sources
from lit_sparse.data.sources import HubStream, LocalFiles, PythonDocs, parse_source


def test_kinds(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    assert parse_source("python-docs") == PythonDocs()
    assert parse_source("hf:org/name") == HubStream("org/name")
    assert parse_source("hf:org/name:config") == HubStream("org/name", "config")
    assert parse_source(str(tmp_path / "*.txt")) == LocalFiles((tmp_path / "a.txt",))


def test_local_files(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("two")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one"))
    (tmp_path / "c.jsonl").write_text('{"text": "three"}\n\n{"text": "four"}\n')
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "five"}'))
    (tmp_path / "skipped.png").write_bytes(b"\xff")
    files = parse_source(f"{tmp_path}/**/*")
    assert list(files.documents()) == ["one", "three", "four", "five", "two"]


def test_a_file_named_with_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note:1.txt").write_text("one")
    assert list(parse_source("note:1.txt").documents()) == ["one"]


def test_long_files_are_cut_between_paragraphs(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_CHARS", 10)
    text = "abcde\n\nfgh\n\nijklmnopqrstuv\nwx"
    (tmp_path / "a.txt").write_text(text)
    pieces = list(parse_source(str(tmp_path / "a.txt")).documents())
    assert pieces == ["abcde", "fgh", "ijklmnopqr", "stuv\nwx"]


def test_fingerprint_is_of_the_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = parse_source(str(path)).fingerprint()
    path.rename(tmp_path / "b.txt")
    assert parse_source(str(tmp_path / "b.txt")).fingerprint() == first
    (tmp_path / "b.txt").write_text("two")
    assert parse_source(str(tmp_path / "b.txt")).fingerprint() != first


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("s3://bucket/a.txt", "unknown kind of source 's3:'"),
        ("hf:", "no file matches"),
        ("wikitext", "no file matches 'wikitext'"),
        ("{folder}/*.txt", "no file matches"),
        ("{folder}", "is a folder"),
        ("{folder}/*.png", "matches no file that can be read"),
    ],
)
def test_refusals(tmp_path, source, reason):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=reason):
        parse_source(source.format(folder=tmp_path))


@pytest.mark.parametrize("line", ["not json", '["text"]', '{"body": "x"}', '{"text": 3}'])
def test_broken_lines_are_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n" + line)
    with pytest.raises(ValueError, match=r"a\.jsonl:2"):
        list(parse_source(str(path)).documents())


def test_unreadable_files(tmp_path):
    for name, data in (("a.txt", b"\xff\xfe\xfa"), ("b.txt.gz", b"not gzip")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            list(parse_source(str(tmp_path / name)).documents())


def test_a_stream(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_dict({"text": ["one", "two"]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(HubStream("org/name", "small").documents()) == ["one", "two"]
    assert asked == [(("org/name", "small"), {"split": "train", "streaming": True})]


def test_a_stream_without_network_or_text(monkeypatch):
    import datasets

    def offline(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'org/name' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ValueError, match=r"no network, use local files or 'python-docs'"):
        list(HubStream("org/name").documents())
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: [{"body": "x"}])
    with pytest.raises(ValueError, match="no column 'text'"):
        list(HubStream("org/name").documents())
