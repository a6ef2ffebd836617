"""Which operator serves which case."""

from dataclasses import dataclass

import pytest
import torch

from lit_sparse.attention import (
    GATES,
    Backend,
    Gate,
    GateConfig,
    Probability,
    build_gate,
    gpu,
    reference,
    register_gate,
)
from lit_sparse.attention.backends import resolve
from lit_sparse.attention.interface import Case


@pytest.fixture
def curved_gate():
    """A family that is not affine in the score, so that only the reference operator can serve it."""

    class CurvedGate(Gate):
        def forward(self, logits, log_normaliser):
            return (logits - log_normaliser).exp() - 0.1

    @register_gate("test_curved")
    @dataclass(frozen=True)
    class Curved(GateConfig):
        def build(self, num_heads):
            return CurvedGate(self, num_heads)

    yield build_gate(Curved(), 4)
    del GATES["test_curved"]


@pytest.fixture
def gate():
    return build_gate(Probability(), 4)


def name(operator) -> str:
    return "reference" if operator is reference.gated_attention else operator.keywords["backend"]


@pytest.mark.parametrize("backend", ["blockwise", "triton"])
def test_a_name_refuses_with_the_reason_and_auto_falls_back(backend, gate, curved_gate):
    for case, reason in ((Case(gate, dropout=0.1), "dropout"), (Case(curved_gate), "overrides forward")):
        with pytest.raises(ValueError, match=reason):
            resolve(backend, case)
        assert resolve(Backend.REFERENCE, case) is resolve("auto", case) is reference.gated_attention


def test_auto_takes_the_blockwise_operator_on_a_cpu(gate):
    cpu = torch.device("cpu")
    for case in (Case(gate), Case(gate, softcap=30.0, device=cpu), Case(gate, device=cpu, holes=True)):
        assert name(resolve("auto", case)) == "blockwise"


def test_auto_takes_triton_on_a_gpu_where_it_can(gate, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cuda = torch.device("cuda")
    monkeypatch.setattr(gpu, "available", lambda: True)
    assert name(resolve("auto", Case(gate, device=cuda))) == "triton"
    for keys in ({"holes": True}, {"dtype": torch.float64}, {"dim": 257}):
        assert name(resolve("auto", Case(gate, device=cuda, **keys))) == "blockwise"
        with pytest.raises(ValueError, match="'triton' does not support"):
            resolve("triton", Case(gate, device=cuda, **keys))
    with pytest.raises(ValueError, match="device 'cpu'"):
        resolve("triton", Case(gate, device=torch.device("cpu")))
    monkeypatch.setattr(gpu, "available", lambda: False)
    assert name(resolve("auto", Case(gate, device=cuda))) == "blockwise"
    with pytest.raises(ValueError, match="pip install"):
        resolve("triton", Case(gate, device=cuda))
