"""Which operator serves which case."""

import pytest

from lit_sparse.attention import GATES, Backend, Gate, GateConfig, build_gate, fused, reference, register_gate
from lit_sparse.attention.backend import resolve


@pytest.fixture
def curved_family():
    """A family that is not affine in the score, so that only the reference operator can serve it."""

    @register_gate("test_curved")
    class Curved(Gate):
        def forward(self, logits, log_normaliser):
            return (logits - log_normaliser).exp() - 0.1

    yield "test_curved"
    del GATES["test_curved"]


CASES = [
    ({"normalisation": "open"}, {}, "open edges"),
    ({}, {"softcap": 30.0}, "soft-capped"),
    ({}, {"dropout": 0.1}, "dropout"),
    ({"family": "test_curved"}, {}, "overrides forward"),
]


@pytest.mark.parametrize(("config", "keys", "reason"), CASES, ids=[case[2] for case in CASES])
def test_auto_falls_back_and_a_name_refuses_with_the_reason(config, keys, reason, curved_family):
    gate = build_gate(GateConfig(**config), 4)
    keys = {"softcap": None, "dropout": 0.0} | keys
    assert resolve("auto", gate, **keys) is reference.gated_attention
    assert resolve(Backend.REFERENCE, gate, **keys) is reference.gated_attention
    with pytest.raises(ValueError, match=reason):
        resolve("fused", gate, **keys)


def test_auto_takes_the_fused_operator_where_it_can():
    for family in ("logit", "probability"):
        gate = build_gate(GateConfig(family=family), 4)
        assert resolve("auto", gate, softcap=None, dropout=0.0) is fused.gated_attention
        assert resolve("fused", gate, softcap=None, dropout=0.0) is fused.gated_attention
