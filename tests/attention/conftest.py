"""Every operator that a machine without a GPU has."""

from dataclasses import fields

import pytest

from lit_sparse.attention import blockwise, native
from lit_sparse.attention.backends import resolve
from lit_sparse.attention.gates import GATES, GateConfig, Probability, build_gate
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
    return resolve(backend, Case(build_gate(Probability(), 1)))


def described(family: str, **options: object) -> GateConfig:
    """A family's description with those of the options that it has, for tests of all families."""
    known = {field.name for field in fields(GATES[family])}
    return GateConfig.of({"family": family, **{name: option for name, option in options.items() if name in known}})
