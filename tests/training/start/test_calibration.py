"""Calibrated starts: the targets are met, the model is left alone, and the estimate is the Fisher information."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lit_sparse.attention import dense, edge_counts, gates_of, reference_pattern, sparsify
from lit_sparse.attention.bridge import set_implementation
from lit_sparse.attention.masks import boolean_mask
from lit_sparse.training.start.calibration import Calibrated, Calibration, _measuring, _sensitivity_pass, calibrate
from lit_sparse.training.start.sensitivity import LEVELS, _levels
from tests.tiny import tiny_llama

FAMILIES = ["logit", "probability"]
LENGTH, BATCH = 24, 4


def make_model(gate: dict[str, object] | None = None, **options) -> PreTrainedModel:
    """2 layers of 4 heads with peaked attention; heads matter to the output by factors 0.05 to 2."""
    model = tiny_llama(max_position_embeddings=LENGTH, initializer_range=0.2).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 1.5
            layer.self_attn.k_proj.weight *= 1.5
            layer.self_attn.o_proj.weight *= torch.tensor([0.05, 0.3, 1.0, 2.0]).repeat_interleave(8)
    return sparsify(model, gate, **options)


def make_batches(count: int = 2) -> list[dict[str, Tensor]]:
    """Two packed documents a row; the last label of each is not scored."""
    generator = torch.Generator().manual_seed(1)
    positions = torch.cat([torch.arange(9), torch.arange(LENGTH - 9)]).expand(BATCH, -1)
    batches = []
    for _ in range(count):
        ids = torch.randint(0, 32, (BATCH, LENGTH), generator=generator)
        labels = ids.roll(-1, 1).masked_fill((positions.roll(-1, 1) == 0), -100)
        batches.append({"input_ids": ids, "position_ids": positions, "labels": labels})
    return batches


@torch.no_grad()
def measured(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> Calibrated:
    """Edge fraction and KL per scored token, written without the package's loss."""
    opened = allowed = kl = tokens = 0.0
    for batch in batches:
        inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
        out = model(**inputs, output_attentions=True)
        with dense(model):
            base = model(**inputs).logits.double().log_softmax(-1)
        counts = edge_counts(out.attentions)
        opened, allowed = opened + counts.opened.sum(), allowed + counts.allowed.sum()
        scored = batch["labels"] != -100
        kl += (base.exp() * (base - out.logits.double().log_softmax(-1))).sum(-1)[scored].sum()
        tokens += scored.sum()
    return Calibrated(edge_fraction=float(opened / allowed), kl=float(kl / tokens))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wanted", [0.6, 0.3, 0.1])
def test_the_edge_fraction_is_met(family, wanted):
    model, batches = make_model({"family": family}), make_batches()
    reached = calibrate(model, batches, Calibration(edge_fraction=wanted))
    # Only 8 heads share the edges, each in steps of a quarter or more, and closed edges move the scores above them.
    assert reached.edge_fraction == pytest.approx(wanted, rel=0.3)
    truth = measured(model, batches)
    assert reached.edge_fraction == pytest.approx(truth.edge_fraction, rel=1e-6)
    assert reached.kl == pytest.approx(truth.kl, rel=1e-3, abs=1e-6)  # float32 against float64


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wanted", [0.3, 0.03, 0.003])
def test_the_kl_is_met_from_below(family, wanted):
    model, batches = make_model({"family": family}), make_batches()
    reached = calibrate(model, batches, Calibration(kl=wanted))
    assert 0.5 * wanted <= reached.kl <= wanted
    assert reached.edge_fraction < 0.9
    truth = measured(model, batches)
    assert reached.kl == pytest.approx(truth.kl, rel=1e-3, abs=1e-6)
    assert reached.edge_fraction == pytest.approx(truth.edge_fraction, rel=1e-6)


def test_a_looser_target_leaves_fewer_edges():
    batches = make_batches()
    fractions = [calibrate(make_model(), batches, Calibration(kl=kl)).edge_fraction for kl in (0.003, 0.03, 0.3)]
    assert fractions == sorted(fractions, reverse=True) and fractions[0] > 1.5 * fractions[2]


def test_all_edges_cost_nothing():
    model, batches = make_model(), make_batches()
    reached = calibrate(model, batches, Calibration(edge_fraction=1.0))
    assert reached.edge_fraction > 0.999  # edges whose estimated cost underflows may go
    assert reached.kl == pytest.approx(0.0, abs=1e-6)  # float32 logits of two operators


@pytest.mark.parametrize("target", [Calibration(edge_fraction=0.3), Calibration(kl=0.05)], ids=["edges", "kl"])
def test_only_the_cutoffs_change(target):
    model, batches = make_model({"learnable": False}, layers=lambda index: index == 1), make_batches()
    model.train()
    model.model.layers[0].mlp.eval()
    model.lm_head.requires_grad_(False)
    flags = [module.training for module in model.modules()]
    learns = [parameter.requires_grad for parameter in model.parameters()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    draws = torch.get_rng_state()
    calibrate(model, batches, target)
    assert [module.training for module in model.modules()] == flags
    assert [parameter.requires_grad for parameter in model.parameters()] == learns
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), draws)
    assert model.config._attn_implementation == "lit_sparse"
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["model.layers.1.self_attn.edge_gate.log_threshold"]


def test_a_failing_forward_restores_the_model():
    model, batches = make_model().train(), make_batches(1)
    batches[0]["input_ids"] = batches[0]["input_ids"] + 1000  # no such token
    with pytest.raises(IndexError):
        calibrate(model, batches, Calibration(kl=0.1))
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "lit_sparse"


@pytest.mark.parametrize("wanted", [0.7, 0.6])
def test_layers_kept_dense_count_as_open(wanted):
    model, batches = make_model(layers=lambda index: index == 1), make_batches()
    reached = calibrate(model, batches, Calibration(edge_fraction=wanted))
    assert reached.edge_fraction == pytest.approx(wanted, rel=0.1)  # of all edges, half of which stay open
    is_open = reference_pattern(model, batches[0]["input_ids"][:1]).is_open[0]
    assert is_open.sum() == 4 * LENGTH * (LENGTH + 1) / 2


def test_calibration_beats_one_threshold_for_all_heads():
    model, batches = make_model({"family": "probability"}), make_batches()
    for wanted in (0.4, 0.15):
        reached = calibrate(model, batches, Calibration(edge_fraction=wanted))
        low, high = -12.0, 0.0
        for _ in range(20):
            middle = (low + high) / 2
            for gate in gates_of(model):
                gate.set_cutoff(torch.full((4,), middle))
            uniform = measured(model, batches)
            low, high = (low, middle) if uniform.edge_fraction < reached.edge_fraction else (middle, high)
        assert uniform.edge_fraction == pytest.approx(reached.edge_fraction, rel=0.02)
        assert reached.kl < 0.7 * uniform.kl  # heads differ by factors of 40 in what they write


def edge_effects(model: PreTrainedModel, batch: dict[str, Tensor], generator: torch.Generator):
    """Per layer (scores, effects), (B, H, T, T): the gradient of the sampled labels' log likelihood with respect to a
    factor on each edge, through attention written independently."""
    layers: list[tuple[Tensor, Tensor, Tensor]] = []

    def attend(module, query, key, value, mask, scaling, **_):
        key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
        logits = (scaling * query @ key.transpose(-1, -2)).masked_fill(~mask, -torch.inf)
        weights = logits.softmax(-1)
        factors = torch.ones_like(weights).requires_grad_()
        layers.append((logits.detach(), weights.log().detach(), factors))
        return (factors * weights @ value).transpose(1, 2), None

    AttentionInterface.register("test_edge_effects", attend)
    AttentionMaskInterface.register("test_edge_effects", boolean_mask)
    set_implementation(model, "test_edge_effects")
    logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    set_implementation(model, "lit_sparse")
    logits = logits[batch["labels"] != -100]
    draws = torch.rand(len(logits), 1, generator=generator)
    sampled = (logits.float().softmax(-1).cumsum(-1) < draws).sum(-1)
    likelihood = logits.log_softmax(-1).gather(-1, sampled[:, None]).sum()
    effects = torch.autograd.grad(likelihood, [factors for *_, factors in layers])
    return [(raw, score, effect) for (raw, score, _), effect in zip(layers, effects, strict=True)]


@pytest.mark.parametrize("block", [1 << 24, 1000])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_estimate_is_what_its_formula_says(family, block, monkeypatch):
    """Whole, and by blocks of two queries."""
    monkeypatch.setattr("lit_sparse.attention.dense_attention._BLOCK", block)
    model, batch = make_model({"family": family}).double(), make_batches(1)[0]
    with _measuring(model) as layers:
        _sensitivity_pass(model, batch, torch.Generator().manual_seed(7))
    truth = edge_effects(model, batch, torch.Generator().manual_seed(7))
    for layer, (raw, log_probability, effect) in zip(layers, truth, strict=True):
        score = raw if family == "logit" else log_probability
        allowed = score > -torch.inf
        assert layer.allowed == allowed.sum()
        for level in (0, 5, 15, 30, layer.cutoffs.shape[1] - 1):
            # Cutoffs lie on scores: a little beyond them rounding decides nothing.
            closed = allowed & (score <= layer.cutoffs[:, level].view(-1, 1, 1) + 1e-10)
            kl = 0.5 * (effect * closed).sum(-1).square().sum((0, 2))
            torch.testing.assert_close(layer.kl[:, level], kl, rtol=1e-9, atol=1e-12)  # float64 sums
            assert layer.edges[:, level].tolist() == (allowed & ~closed).sum((0, 2, 3)).tolist()
        assert (layer.edges[:, 0] == layer.edges[0, 0]).all() and not layer.kl[:, 0].any()
        assert not layer.edges[:, -1].any()


def test_levels_of_a_sample(monkeypatch):
    """Of many scores a sample gives nearly the quantiles, and exactly the first and the last cutoff."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2, 3, 200, 100, generator=generator, dtype=torch.float64)
    allowed = (torch.rand(3, 200, 100, generator=generator) < 0.5).expand(2, 3, 200, 100)
    blocks = [(scores[..., rows], allowed[..., rows]) for rows in (slice(0, 30), slice(30, 100))]
    edges = int(allowed[0].sum())
    whole = _levels(blocks, edges)
    monkeypatch.setattr("lit_sparse.training.start.sensitivity._SCORES", 10_000)
    sampled = _levels(blocks, edges)
    assert sampled.shape == whole.shape == (2, LEVELS)
    assert torch.equal(sampled, _levels(blocks, edges))
    assert torch.equal(sampled[:, [0, -1]], whole[:, [0, -1]])
    torch.testing.assert_close(sampled[:, 1:-1], whole[:, 1:-1], rtol=0, atol=0.02)  # four standard errors


def test_the_estimate_predicts_the_measured_kl():
    model, batch = make_model({"family": "probability"}), make_batches(1)[0]
    draws, generator = 150, torch.Generator().manual_seed(3)
    with _measuring(model) as layers:
        for _ in range(draws):
            _sensitivity_pass(model, batch, generator)
    tokens = int((batch["labels"] != -100).sum())
    pairs: list[list[tuple[float, float]]] = [[], []]
    open_cutoffs = torch.full((4,), -1e4)
    for gate in gates_of(model):
        gate.set_cutoff(open_cutoffs)
    for index, (layer, gate) in enumerate(zip(layers, gates_of(model), strict=True)):
        for head in range(4):
            for level in (4, 10, 16):
                cutoffs = open_cutoffs.clone()
                cutoffs[head] = layer.cutoffs[head, level]
                gate.set_cutoff(cutoffs)
                kl = measured(model, [batch]).kl
                if 1e-7 < kl < 0.05:  # where second order is the leading one, and above float32's noise
                    pairs[index].append((float(layer.kl[head, level]) / draws / tokens, kl))
        gate.set_cutoff(open_cutoffs)
    first, last = (torch.tensor(found, dtype=torch.float64) for found in pairs)
    assert len(first) >= 6 and len(last) >= 6
    # In the last layer each row reaches its own token's logits only, so the estimate lacks nothing but third order
    # and the noise of 150 draws; below, rows also act together, which the diagonal leaves out.
    for found, factor in ((last, 1.5), (first, 3.0)):
        ratio = found[:, 0] / found[:, 1]
        assert ratio.min() > 1 / factor and ratio.max() < factor, ratio
    both = torch.cat([first, last]).argsort(0).argsort(0).double().T
    assert torch.corrcoef(both)[0, 1] > 0.95


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({}, "exactly one"),
        ({"edge_fraction": 0.1, "kl": 0.1}, "exactly one"),
        ({"edge_fraction": 0.0}, "edge_fraction"),
        ({"edge_fraction": 1.5}, "edge_fraction"),
        ({"edge_fraction": float("nan")}, "edge_fraction"),
        ({"kl": 0.0}, "kl"),
        ({"kl": -1.0}, "kl"),
        ({"kl": float("nan")}, "kl"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(keys, complaint):
    with pytest.raises(ValueError, match=complaint):
        Calibration(**keys)


def test_progress_counts_to_the_end():
    def steps(target: Calibration) -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        record: Callable[[int, int], None] = lambda done, total: seen.append((done, total))  # noqa: E731
        calibrate(make_model(), make_batches(), target, on_progress=record)
        return seen

    for target in (Calibration(kl=0.05), Calibration(edge_fraction=0.3)):
        done, totals = zip(*steps(target), strict=True)
        assert len(set(totals)) == 1 and list(done) == sorted(done)
        assert done[:2] == (1, 2) and done[-1] <= totals[0]
