"""Building the C kernels: what happens with and without a compiler. Their numbers: test_blockwise.py."""

import logging
import os
import stat

import pytest
import torch

from lit_sparse import sparsify
from lit_sparse.attention.native import build as building

built = pytest.mark.skipif(building.library() is None, reason="no C compiler on this machine")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache, and a `library` that has not looked yet."""
    monkeypatch.setenv("LIT_SPARSE_CACHE", str(tmp_path))
    monkeypatch.delenv(building.DISABLE, raising=False)
    building.library.cache_clear()
    yield tmp_path
    building.library.cache_clear()


@built
def test_built_once_and_kept(fresh, monkeypatch):
    assert building.library() is not None
    (kept,) = (fresh / "native").iterdir()
    assert kept.suffix == ".so"
    building.library.cache_clear()
    written = kept.stat().st_mtime_ns
    assert building.library() is not None and kept.stat().st_mtime_ns == written
    building.library.cache_clear()
    monkeypatch.setattr(building, "_processor", lambda: "another one")
    assert building.library() is not None
    assert len(list((fresh / "native").iterdir())) == 2, "code for one processor may crash another"


def compiler(folder, script: str) -> str:
    path = folder / "broken-cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_compiler_that_fails_is_said_once_and_torch_serves(fresh, monkeypatch, caplog, make_model, tokens):
    monkeypatch.setenv("CC", compiler(fresh, '[ "$1" = --version ] && exit 0; echo "no assembler" >&2; exit 1'))
    with caplog.at_level(logging.WARNING):
        assert building.library() is None and building.library() is None
    assert caplog.text.count("could not be built") == 1 and "no assembler" in caplog.text
    assert not list(fresh.glob("native/*.so"))
    logits = sparsify(make_model("llama"), {"threshold": 0.15})(tokens(2, 9)).logits
    assert torch.isfinite(logits).all()


def test_no_compiler(fresh, monkeypatch, caplog):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(fresh))
    with caplog.at_level(logging.WARNING):
        assert building.library() is None
    assert "install gcc or clang" in caplog.text


def test_the_switch(fresh, monkeypatch, caplog):
    monkeypatch.setenv(building.DISABLE, "1")
    assert building.library() is None
    assert not caplog.text and not os.listdir(fresh)


@built
def test_a_cache_that_cannot_be_written(fresh, monkeypatch, caplog):
    (fresh / "file").write_text("")
    monkeypatch.setenv("LIT_SPARSE_CACHE", str(fresh / "file"))
    with caplog.at_level(logging.WARNING):
        assert building.library() is None
    assert "could not be built" in caplog.text


@built
def test_plainer_compilers_get_plainer_options(fresh, monkeypatch):
    """One that knows neither OpenMP nor this processor."""
    real = os.environ.get("CC") or "cc"
    monkeypatch.setenv(
        "CC",
        compiler(fresh, f'for a in "$@"; do case $a in -fopenmp|-m*=native) exit 1;; esac; done; exec {real} "$@"'),
    )
    assert building.library() is not None
