"""Gate families, their configuration, and how gates are drawn."""

import math

import pytest
import torch
from torch import nn

from lit_sparse import Gate, GateConfig, register_gate, sparsify
from lit_sparse.attention import GATES, GateForm, build_gate, edge_counts, gates_of, reference
from lit_sparse.attention.masks import EdgeMask
from lit_sparse.attention.noise import draw_seeds

PLAIN = {"scaling": 1.0, "softcap": None, "dropout": 0.0, "seeds": None}
FAMILIES = ["logit", "probability", "contribution"]


@pytest.fixture
def own_family():
    """A whole gate family: one class. A threshold relative to the row's number of nats, sharper than the rest."""

    @register_gate("test_own")
    class Own(Gate):
        def __init__(self, config: GateConfig, num_heads: int):
            super().__init__(config, num_heads)
            self.level = self._parameter(-2.0)
            self.set_sharpness(5.0)

        def form(self) -> GateForm:
            return GateForm(sharpness=self.sharpness, cutoff=self.level, normalised=True)

        @torch.no_grad()
        def set_cutoff(self, cutoff):
            self.level.copy_(cutoff)

    yield Own
    del GATES["test_own"]


def test_an_own_family_is_one_class(own_family, make_model, tokens):
    model = sparsify(make_model("llama"), GateConfig(family="test_own"))
    assert [type(gate) for gate in gates_of(model)] == [own_family] * 2
    assert dict(model.named_parameters())["model.layers.0.self_attn.edge_gate.level"].shape == (4,)
    ids = tokens(2, 9)
    counts = edge_counts(model(ids, output_attentions=True).attentions)
    same = sparsify(make_model("llama"), {"threshold": math.exp(-2.0), "sharpness": 5.0})
    torch.testing.assert_close(counts, edge_counts(same(ids, output_attentions=True).attentions))
    counts.expected.sum().backward()
    assert all(gate.level.grad.abs().sum() > 0 for gate in gates_of(model))


def test_a_name_is_registered_once(own_family):
    with pytest.raises(ValueError, match="already registered"):
        register_gate("test_own")(type("Other", (Gate,), {}))
    assert GATES["test_own"] is own_family


def test_an_incomplete_family_says_what_it_lacks():
    gate = Gate(GateConfig(), 2)
    with pytest.raises(TypeError, match="form"):
        gate(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 1))
    with pytest.raises(TypeError, match="set_cutoff"):
        gate.keep_open()


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": 1.0}, "threshold"),
        ({"threshold": math.nan}, "threshold"),
        ({"sharpness": 0.0}, "sharpness"),
        ({"sharpness": -1.0}, "sharpness"),
        ({"sharpness": math.inf}, "sharpness"),
        ({"bias": math.inf}, "bias"),
        ({"bias": math.nan}, "bias"),
        ({"normalisation": "rows"}, "normalisation"),
        ({"treshold": 0.1}, "unknown gate key.*treshold.*known keys.*threshold"),
    ],
)
def test_a_wrong_configuration_names_the_key(keys, complaint):
    with pytest.raises(ValueError, match=complaint):
        GateConfig.of(keys)


def test_a_configuration_from_what_people_write():
    config = GateConfig(family="logit", bias=2.0)
    assert GateConfig.of(config) is config
    assert GateConfig.of({"family": "logit", "bias": 2.0}) == config
    assert GateConfig.of(None) == GateConfig()


def test_an_unknown_family_lists_the_known():
    with pytest.raises(ValueError, match=r"'nothing'.*logit.*probability"):
        build_gate(GateConfig(family="nothing"), 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_leaves_gates_in_float32(family, dtype, make_model):
    model = sparsify(make_model("llama"), {"family": family, "bias": 1.2345678, "threshold": 0.0123456})
    before = [parameter.detach().clone() for gate in gates_of(model) for parameter in gate.parameters()]
    model.to(dtype)
    after = [parameter for gate in gates_of(model) for parameter in gate.parameters()]
    assert model.lm_head.weight.dtype is dtype
    assert all(parameter.dtype is torch.float32 for parameter in after)
    assert all(map(torch.equal, before, after)), "a calibrated cutoff must not be rounded on the way"
    assert all(isinstance(parameter, nn.Parameter) and parameter.requires_grad for parameter in after)


def draw_once(operator, family, seed, *, sample=True, batch=400, **config):
    """Many copies of one small random problem: (edges, sigmoid(z) per pair, mask)."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, 5, 4, generator=generator).expand(batch, -1, -1, -1) for _ in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    gate = build_gate(GateConfig(family=family, threshold=0.15, bias=0.2, **config), 2)
    torch.manual_seed(seed)
    keys = {"scaling": 1.0, "softcap": None, "dropout": 0.0, "seeds": draw_seeds(batch, "cpu") if sample else None}
    _, edges = operator(q, k, v, EdgeMask.causal(5, 5), gate, **keys)
    logits = reference.attention_logits(q[:1], k[:1], scaling=1.0, softcap=None).masked_fill(~mask, -torch.inf)
    probability = gate(logits, logits.logsumexp(-1, keepdim=True), gate.key_offset(v[:1])).sigmoid().detach()
    return edges.detach(), probability


@pytest.mark.parametrize("family", FAMILIES)
def test_gates_open_as_often_as_their_probability_says(operator, family):
    edges, probability = draw_once(operator, family, seed=3)
    opened = edges[..., 1].sum(0)
    mean, variance = probability.sum((0, 2, 3)) * 400, (probability * (1 - probability)).sum((0, 2, 3)) * 400
    # A sum of independent Bernoullis; 4.5 standard deviations are passed by chance once in 150,000.
    assert ((opened - mean).abs() < 4.5 * variance.sqrt()).all()
    torch.testing.assert_close(edges[..., 0].sum(0), mean, rtol=1e-4, atol=0)  # float32 sums of 6,000 terms
    assert edges[..., 1].unique().numel() > 4, "copies draw their own gates"


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_follow_the_default_generator(operator, family):
    first, again, other = (draw_once(operator, family, seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_opens_what_is_likelier_open_than_not(operator, family):
    edges, probability = draw_once(operator, family, seed=3, sample=False, batch=3)
    assert torch.equal(edges[..., 1], (probability > 0.5).sum((0, 2, 3)).float().expand(3, -1))
    assert torch.equal(edges, draw_once(operator, family, seed=4, sample=False, batch=3)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_evaluated_edges_are_those_above_the_cutoff(operator, family):
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(1, 2, 6, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    gate = build_gate(GateConfig(family=family), 2).double()
    logits = reference.attention_logits(q, k, scaling=1.0, softcap=None).masked_fill(~mask, -torch.inf)
    score = logits if family == "logit" else logits.log_softmax(-1)
    if family == "contribution":
        score = score + v.norm(dim=-1).log()[:, :, None]
    for cutoff in (-3.0, -1.0, 0.5):
        gate.set_cutoff(torch.tensor([cutoff, cutoff - 0.5], dtype=torch.float64))
        _, edges = operator(q, k, v, EdgeMask.causal(6, 6), gate, **PLAIN)
        expected = (score > torch.tensor([cutoff, cutoff - 0.5]).view(-1, 1, 1)).sum((0, 2, 3))
        assert edges[0, :, 1].tolist() == expected.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_fixed_gates_are_saved_and_set_but_not_trained(family, make_model, tokens):
    model = sparsify(make_model("llama"), {"family": family, "learnable": False})
    gates = gates_of(model)
    assert not any(parameter.requires_grad for gate in gates for parameter in gate.parameters())
    assert sum("edge_gate" in name for name in model.state_dict()) == 4  # cutoffs and sharpness of two layers
    model.train()(tokens(1, 6)).logits.sum().backward()
    assert all(parameter.grad is None for gate in gates for parameter in gate.parameters())
    gates[0].set_cutoff(torch.full((4,), 0.25))
    torch.testing.assert_close(gates[0].form().cutoff, torch.full((4,), 0.25))


def test_a_kept_open_layer_stays_open_and_untrained(make_model, tokens):
    model = sparsify(make_model("llama"), {"threshold": 0.3}, layers=lambda index: index == 1)
    dense_gate, sparse_gate = gates_of(model)
    assert not dense_gate.closable and sparse_gate.closable
    assert not dense_gate.log_threshold.requires_grad and sparse_gate.log_threshold.requires_grad
    counts = edge_counts(model(tokens(2, 8), output_attentions=True).attentions)
    assert torch.equal(counts.opened[0], counts.allowed[0])
    assert (counts.opened[1] < counts.allowed[1]).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_only_gates_on_probabilities_ignore_a_rows_shift(operator, family):
    """A component c that all keys share adds q_i . c to the whole row of query i."""
    generator = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(2, 2, 9, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    gate = build_gate(GateConfig(family=family, threshold=0.1, bias=0.0), 2).double()
    shift = torch.randn(1, 2, 1, 4, generator=generator, dtype=torch.float64)

    def run(keys):
        return operator(q, keys, v, EdgeMask.causal(9, 9), gate, **PLAIN | {"seeds": torch.tensor([1, 2])})

    plain, shifted = run(k), run(k + shift)
    if family != "logit":
        torch.testing.assert_close(shifted, plain, rtol=0, atol=1e-12)  # float64
    else:
        assert (shifted.edges[..., 0] - plain.edges[..., 0]).abs().min() > 0.01


def test_an_edge_to_a_value_of_nothing_is_closed_whatever_its_probability(operator):
    """The attention sink: the first key takes nearly all probability and hands on nothing."""
    q, k, v = (torch.randn(1, 2, 7, 4, dtype=torch.float64) for _ in range(3))
    k[:, :, 0], q[..., 0] = torch.tensor([40.0, 0, 0, 0]), 1.0
    v[:, :, 0] = 0.0
    v.requires_grad_()
    for family, opened in (("probability", 7.0), ("contribution", 0.0)):
        gate = build_gate(GateConfig(family=family, threshold=0.5), 2).double()
        _, edges = operator(q, k, v, EdgeMask.causal(7, 7), gate, **PLAIN)
        assert edges[0, :, 1].tolist() == [opened, opened]
        (gradient,) = torch.autograd.grad(edges[..., 0].sum(), v, allow_unused=True)
        assert gradient is None or torch.isfinite(gradient).all()


@pytest.mark.parametrize(("family", "slope"), [("logit", 1.0), ("probability", 3.3), ("contribution", 3.3)])
def test_sharpness_is_a_number_that_kernels_load(family, slope):
    """Exact whatever becomes of the weights, changed in place, and part of a checkpoint."""
    gate = build_gate(GateConfig(family=family), 3)
    where = gate.form().sharpness.data_ptr()
    gate.set_sharpness(3.3)
    assert gate.form().sharpness.data_ptr() == where and gate.sharpness.shape == ()
    gate.to(torch.bfloat16)
    assert gate.sharpness.dtype is torch.float32 and gate.sharpness == torch.tensor(slope)
    loaded = build_gate(GateConfig(family=family), 3)
    loaded.load_state_dict(gate.state_dict())
    assert loaded.form().sharpness == torch.tensor(slope)


@pytest.mark.parametrize(("family", "slope"), [("logit", 1.0), ("probability", 5.0)])
def test_a_gate_built_without_memory_gets_its_sharpness_with_it(family, slope):
    with torch.device("meta"):
        gate = build_gate(GateConfig(family=family, sharpness=5.0), 3)
    assert gate.sharpness.is_meta
    assert gate.to(torch.bfloat16).to_empty(device="cpu").sharpness == torch.tensor(slope)
    assert gate.sharpness.dtype is torch.float32
