"""Every operator that a machine without a GPU has."""

import pytest

from lit_sparse.attention import blockwise, native
from lit_sparse.attention.backends import resolve
from lit_sparse.attention.gates import GateConfig, build_gate
from lit_sparse.attention.interface import AttentionOperator, Backend, Case


@pytest.fixture(params=["reference", "blockwise", "blockwise in C"])
def operator(request, monkeypatch) -> AttentionOperator:
    """Every implementation that a machine without a GPU has. In float64 the C kernels leave the work to torch's."""
    return _make_operator(request.param, monkeypatch)


@pytest.fixture(params=["blockwise", "blockwise in C"])
def fast_operator(request, monkeypatch) -> AttentionOperator:
    return _make_operator(request.param, monkeypatch)


def _make_operator(name: str, monkeypatch) -> AttentionOperator:
    if name == "blockwise in C":
        if native.library() is None:
            pytest.skip("no C compiler on this machine")
    elif name == "blockwise":
        monkeypatch.setattr(blockwise.native, "library", lambda: None)
    backend = Backend(name.split()[0])
    return resolve(backend, Case(build_gate(GateConfig(), 1)))
