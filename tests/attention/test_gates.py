"""Gate families, their descriptions, and how gates are drawn."""

import math
from dataclasses import dataclass, fields

import pytest
import torch
from torch import nn

from lit_sparse import Contribution, Gate, GateConfig, Logit, Probability, register_gate, sparsify
from lit_sparse.attention import GATES, GateForm, build_gate, edge_counts, gates_of, reference
from lit_sparse.attention.masks import EdgeMask
from lit_sparse.attention.noise import draw_seeds
from tests.attention.conftest import described

PLAIN = {"scaling": 1.0, "softcap": None, "dropout": 0.0, "seeds": None}
FAMILIES = ["logit", "probability", "contribution"]


class OwnGate(Gate):
    """A threshold on the log probability."""

    def __init__(self, config: "Own", num_heads: int):
        super().__init__(config, num_heads)
        self.level = self.per_head(config.level)

    def form(self) -> GateForm:
        return GateForm(sharpness=self.sharpness, cutoff=self.level, normalised=True)

    @torch.no_grad()
    def set_cutoff(self, cutoff):
        self.level.copy_(cutoff)


@dataclass(frozen=True)
class Own(GateConfig):
    level: float
    slope: float = 5.0

    def build(self, num_heads: int) -> OwnGate:
        return OwnGate(self, num_heads)

    def sharpness_at(self, progress: float) -> float:
        return self.slope


@pytest.fixture
def own_family():
    """A whole gate family: a description and what it builds."""
    yield register_gate("test_own")(Own)
    del GATES["test_own"], Own.family


def test_an_own_family_is_a_description_and_a_gate(own_family, make_model, tokens):
    model = sparsify(make_model("llama"), Own(-2.0))
    assert [type(gate) for gate in gates_of(model)] == [OwnGate] * 2
    assert dict(model.named_parameters())["model.layers.0.self_attn.edge_gate.level"].shape == (4,)
    ids = tokens(2, 9)
    counts = edge_counts(model(ids, output_attentions=True).attentions)
    same = sparsify(make_model("llama"), {"threshold": math.exp(-2.0), "sharpness": 5.0})
    torch.testing.assert_close(counts, edge_counts(same(ids, output_attentions=True).attentions))
    counts.expected.sum().backward()
    assert all(gate.level.grad.abs().sum() > 0 for gate in gates_of(model))
    options = {"family": "test_own", "level": -3.0, "centered": True}
    fixed = gates_of(sparsify(make_model("llama"), options | {"learnable": False}))[0]
    assert fixed.form().cutoff.tolist() == [-3.0] * 4 and fixed.center is not None and not fixed.level.requires_grad


def test_learnable_holds_whatever_a_family_builds(own_family):
    assert build_gate(Own(0.0), 2).level.requires_grad
    assert not build_gate(Own(0.0, learnable=False), 2).level.requires_grad


def test_a_name_is_registered_once(own_family):
    with pytest.raises(ValueError, match="already registered"):
        register_gate("test_own")(Contribution)
    assert GATES["test_own"] is own_family and Contribution.family == "contribution"


def test_a_description_that_nothing_could_read_again_is_refused(make_model):
    with pytest.raises(ValueError, match="Own is no registered gate family"):
        sparsify(make_model("llama"), Own(-2.0))

    class Sharper(Contribution):
        threshold: float = 0.5

    with pytest.raises(ValueError, match="Sharper is no registered gate family"):  # nor is it its parent's
        build_gate(Sharper(), 2)
    with pytest.raises(TypeError, match=r"Sharper must be a dataclass: put @dataclass\(frozen=True\)"):
        register_gate("test_sharper")(Sharper)
    assert "test_sharper" not in GATES


def test_an_incomplete_family_says_what_it_lacks():
    gate = Gate(Probability(), 2)
    with pytest.raises(TypeError, match="form"):
        gate(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 1))
    with pytest.raises(TypeError, match="set_cutoff"):
        gate.keep_open()
    with pytest.raises(TypeError, match="build"):
        GateConfig()


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": 1.0}, "threshold"),
        ({"threshold": math.nan}, "threshold"),
        ({"family": "contribution", "threshold": math.inf}, "threshold"),
        ({"sharpness": 0.0}, "sharpness"),
        ({"sharpness": -1.0}, "sharpness"),
        ({"sharpness": math.inf}, "sharpness"),
        ({"family": "contribution", "sharpness_end": 0.0}, "sharpness_end must be positive"),
        ({"family": "logit", "bias": math.inf}, "bias"),
        ({"family": "logit", "bias": math.nan}, "bias"),
        ({"normalisation": "rows"}, "normalisation"),
        ({"family": "logit", "normalisation": "rows"}, "normalisation"),
        ({"treshold": 0.1}, "unknown gate key.*treshold.*known keys.*threshold"),
        ({"family": "contribution", "bias": 1.0}, "unknown gate key.*bias of family 'contribution'.*known.*threshold"),
        ({"family": "logit", "sharpness": 1.0}, "unknown gate key.*sharpness of family 'logit'.*known.*bias"),
        ({"family": "nothing"}, r"'nothing'.*logit.*probability.*once the module that defines it has been imported"),
    ],
    ids=str,
)
def test_a_wrong_description_names_the_key(keys, complaint):
    with pytest.raises(ValueError, match=complaint):
        GateConfig.of(keys)


def test_a_description_from_what_people_write():
    config = Logit(bias=2.0)
    assert GateConfig.of(config) is config
    assert GateConfig.of({"family": "logit", "bias": 2.0}) == config
    assert GateConfig.of(None) == GateConfig.of({}) == Probability()
    assert Contribution() != Probability() == GateConfig.of(Probability().as_mapping())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *((Logit(), Logit(**{name: value})) for name, value in [("bias", -0.5), ("normalisation", "open")]),
        *(
            (family(threshold=0.1), family(**{"threshold": 0.1} | {name: value}))
            for family in (Probability, Contribution)
            for name, value in [("threshold", 0.4), ("sharpness", 7.0), ("normalisation", "open")]
        ),
    ],
    ids=str,
)
def test_every_option_of_a_family_does_something(first, second, make_model, tokens):
    """With the same noise; `learnable`, `centered` and `sharpness_end` are tested by themselves."""
    results = []
    for config in (first, second):
        model = sparsify(make_model("llama"), config).train()
        torch.manual_seed(1)
        outputs = model(tokens(2, 12), output_attentions=True)
        results.append(torch.cat([outputs.logits.flatten(), *(edges.flatten() for edges in outputs.attentions)]))
    assert not torch.equal(*results)


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_edges_give_the_center_in_every_family(family, make_model, tokens):
    models = [sparsify(make_model("llama"), {"family": family, "centered": centered}) for centered in (False, True)]
    for model in models:
        for gate in gates_of(model):
            gate.set_cutoff(torch.full((4,), 50.0))
            if gate.center is not None:
                gate.center.fill_(0.3)
    plain, centered = (model(tokens(1, 6)).logits for model in models)
    assert not torch.allclose(plain, centered)


@pytest.mark.parametrize("family", [Probability, Contribution])
def test_sharpness_follows_a_run(family):
    config = family(sharpness=2.0, sharpness_end=32.0)
    assert config.follows_progress and not family(sharpness=2.0).follows_progress
    gate = build_gate(config, 2)
    for progress, expected in ((0.0, 2.0), (0.5, 8.0), (1.0, 32.0), (0.0, 2.0)):
        gate.advance(progress)
        assert float(gate.form().sharpness) == pytest.approx(expected)
    assert not Logit().follows_progress and {field.name for field in fields(Logit)} == {
        "bias", "learnable", "normalisation", "centered",
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_leaves_gates_in_float32(family, dtype, make_model):
    model = sparsify(make_model("llama"), described(family, bias=1.2345678, threshold=0.0123456))
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
    gate = build_gate(described(family, threshold=0.15, bias=0.2, **config), 2)
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
    gate = build_gate(described(family), 2).double()
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
    gate = build_gate(described(family, threshold=0.1, bias=0.0), 2).double()
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
        gate = build_gate(described(family, threshold=0.5), 2).double()
        _, edges = operator(q, k, v, EdgeMask.causal(7, 7), gate, **PLAIN)
        assert edges[0, :, 1].tolist() == [opened, opened]
        (gradient,) = torch.autograd.grad(edges[..., 0].sum(), v, allow_unused=True)
        assert gradient is None or torch.isfinite(gradient).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_sharpness_is_a_number_that_kernels_load(family, slope=3.3):
    """Exact whatever becomes of the weights, changed in place, and part of a checkpoint."""
    gate = build_gate(described(family), 3)
    where = gate.form().sharpness.data_ptr()
    gate.set_sharpness(slope)
    assert gate.form().sharpness.data_ptr() == where and gate.sharpness.shape == ()
    gate.to(torch.bfloat16)
    assert gate.sharpness.dtype is torch.float32 and gate.sharpness == torch.tensor(slope)
    loaded = build_gate(described(family), 3)
    loaded.load_state_dict(gate.state_dict())
    assert loaded.form().sharpness == torch.tensor(slope)


@pytest.mark.parametrize(("family", "slope"), [("logit", 1.0), ("probability", 5.0)])
def test_a_gate_built_without_memory_gets_its_sharpness_with_it(family, slope):
    with torch.device("meta"):
        gate = build_gate(described(family, sharpness=5.0), 3)
    assert gate.sharpness.is_meta
    assert gate.to(torch.bfloat16).to_empty(device="cpu").sharpness == torch.tensor(slope)
    assert gate.sharpness.dtype is torch.float32
