"""Passes with edges switched off, against the model's own forward pass with hooks and with edits."""

import copy

import pytest
import torch

from lit_sparse import edit, sparsify
from lit_sparse.anatomy.stack import Stack
from lit_sparse.attention import attention_modules, gates_of, reference_pattern
from lit_sparse.circuits.attention_edges.passes import Passes
from tests.attention.test_families import FAMILIES

CLOSE = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}  # logits are of order 1 to 10; some norms are float32
OFF = ["zero", "mean", "corrupted"]
LENGTH = 8

every_family = pytest.mark.parametrize("family", FAMILIES)
any_gates = pytest.mark.parametrize("gates", ["dense", "all", "centered", "open"])
any_off = pytest.mark.parametrize("off", OFF)


@torch.no_grad()
def next_token(model, ids):
    return model(ids, use_cache=False).logits[:, -1]


@pytest.fixture
def prompts(tokens):
    return tokens(2, LENGTH, seed=1), tokens(2, LENGTH, seed=2)


def some_means(model):
    dim = 6 if model.config.model_type == "deepseek_v3" else 8
    return list(torch.randn(2, 4, dim, generator=torch.Generator().manual_seed(3)).to(model.dtype))


def passes_of(stack, prompts, off, **options):
    means = some_means(stack.model) if off == "mean" else None
    return Passes(stack, prompts[0], off, means=means, corrupted=prompts[1] if off == "corrupted" else None, **options)


def random_switches(passes, samples=1, seed=0, shared=False):
    generator = torch.Generator().manual_seed(seed)
    batch = 1 if shared else len(passes)
    shape = samples, batch, 4, LENGTH, LENGTH
    return [(torch.rand(shape, generator=generator) < 0.5).float() for _ in passes.open]


def listed(kept):
    """The edges of one sample of one prompt, or of all of them."""
    return [(layer, *edge) for layer, some in enumerate(kept) for edge in some[0, 0].tril().nonzero().tolist()]


def output_projections(model):
    with Stack(model) as stack:
        return [layer.output for layer in stack.anatomy.layers]


def head_outputs(model, ids):
    """What each layer's heads give to the output projection."""
    seen = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for module in output_projections(model)
    ]
    next_token(model, ids)
    for hook in hooks:
        hook.remove()
    return seen


def with_head_outputs(model, ids, outputs):
    """Logits where every head's output is given."""
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, output=output: (output.to(inputs[0]), *inputs[1:]))
        for module, output in zip(output_projections(model), outputs, strict=True)
    ]
    found = next_token(model, ids)
    for hook in hooks:
        hook.remove()
    return found


def whole_weights(model, ids, normalisation="all"):
    """w of every edge, per layer and prompt, (layer, batch, head, query, key)."""
    if not attention_modules(model):
        model = sparsify(copy.deepcopy(model), layers=lambda layer: False)
    found = []
    for prompt in ids.split(1):
        softmax, is_open = reference_pattern(model, prompt)
        weights = softmax * is_open
        found.append(weights / weights.sum(-1, keepdim=True).clamp_min(1e-9) if normalisation == "open" else weights)
    return torch.stack(found, dim=1).to(model.dtype)


def test_about_half_of_the_edges_are_open(build, prompts):
    for family in FAMILIES:
        for gates in ("all", "centered", "open"):
            is_open = whole_weights(build(family, gates), prompts[0]) > 0
            allowed = whole_weights(build(family, "dense"), prompts[0]) > 0
            assert 0.2 < is_open.sum() / allowed.sum() < 0.9


@every_family
@any_gates
def test_all_edges_are_the_model_and_none_the_full_ablation(family, gates, build, prompts):
    model, (ids, corrupted) = build(family, gates), prompts
    found = {}
    with Stack(model) as stack, torch.no_grad():
        for off in OFF:
            passes = passes_of(stack, prompts, off)
            on = [some.double()[None] for some in passes.open]
            found[off] = passes.logits(on), passes.logits([None] * 2), passes.logits([0 * some for some in on])
        centers = [gate.head_center(model.dtype)[:, None] for gate in gates_of(model)]
    weights, whole = whole_weights(model, ids, gates), next_token(model, ids)
    outputs = {"corrupted": head_outputs(model, corrupted)}
    for off, times in (("zero", 0), ("mean", 1)):
        outputs[off] = [
            (center + times * some.sum(-1, keepdim=True) * mean[:, None]).expand(2, -1, LENGTH, -1).transpose(1, 2)
            for center, some, mean in zip(centers, weights, some_means(model), strict=True)
        ]
    for off, (listed_all, all_kept, none_kept) in found.items():
        torch.testing.assert_close(listed_all, whole, **CLOSE)
        torch.testing.assert_close(all_kept, whole, **CLOSE)
        expected = with_head_outputs(model, ids, [some.flatten(2) for some in outputs[off]])
        torch.testing.assert_close(none_kept, expected, **CLOSE)
        assert (expected - whole).abs().max() > 0.01


@every_family
@any_gates
def test_some_edges_are_the_model_with_edits(family, gates, build, prompts):
    model, ids = build(family, gates), prompts[0]
    with Stack(model) as stack, torch.no_grad():
        of = {off: passes_of(stack, prompts, off) for off in OFF}
        kept = random_switches(of["zero"], shared=True)
        found = {off: passes.logits(kept) for off, passes in of.items()}
    whole = next_token(model, ids)
    for off, passes in of.items():
        with edit(model, instead=passes.instead) as edits:
            edits.keep(listed(kept))
            expected = next_token(model, ids)
        torch.testing.assert_close(found[off], expected, **CLOSE)
        assert (expected - whole).abs().max() > 0.01


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@any_off
@pytest.mark.parametrize("frozen", [False, True])
def test_samples_and_prompts_in_one_call_are_single_calls(family, off, frozen, build, prompts):
    model = build(family, "all")
    with Stack(model) as stack, torch.no_grad():
        passes = passes_of(stack, prompts, off, frozen=frozen)
        kept = random_switches(passes, samples=2)
        found = passes.logits(kept)
        assert len(passes) == 2 and len(found) == 4
        for sample in range(2):
            for prompt in range(2):
                one = passes_of(stack, [some[prompt : prompt + 1] for some in prompts], off, frozen=frozen)
                alone = one.logits([some[sample : sample + 1, prompt : prompt + 1] for some in kept])
                torch.testing.assert_close(found[2 * sample + prompt], alone[0], **CLOSE)
        together = passes.logits([some[:1] for some in kept]), passes.logits([None, kept[1]])
        torch.testing.assert_close(together[0], found[:2], **CLOSE)
        torch.testing.assert_close(together[1], passes.logits([torch.ones_like(kept[0]), kept[1]]), **CLOSE)


@every_family
@any_gates
@any_off
def test_a_pass_may_begin_at_a_later_layer_and_position(family, gates, off, build, prompts):
    with Stack(build(family, gates)) as stack, torch.no_grad():
        assert stack.takes_positions
        passes = passes_of(stack, prompts, off)
        before, after = random_switches(passes), random_switches(passes, samples=3, seed=1)
        after[1][:, :, :, :5] = before[1][:, :, :, :5]
        course = passes.course(before)
        expected = passes.logits([before[0].repeat(3, 1, 1, 1, 1), after[1]])
        for first in (0, 3, 5):
            found = passes.logits([None, after[1]], start=1, first=first, course=course)
            torch.testing.assert_close(found, expected, **CLOSE)
        both = [before[0].repeat(3, 1, 1, 1, 1), after[1]]
        both[0][1:, :, :, 5:] = after[0][1:, :, :, 5:]
        torch.testing.assert_close(passes.logits(both, first=5, course=course), passes.logits(both), **CLOSE)
        torch.testing.assert_close(passes.logits([None, after[1]], start=1), passes.logits([None, after[1]]), **CLOSE)
        for own, whole in zip(passes.course([None, None]).residuals, passes.whole.residuals, strict=True):
            torch.testing.assert_close(own, whole, **CLOSE)


@any_off
@pytest.mark.parametrize("option", ["frozen", "between"])
def test_later_positions_of_other_passes(option, off, build, prompts):
    with Stack(build("llama", "all")) as stack, torch.no_grad():
        passes = passes_of(stack, prompts, off, **{option: True})
        before, after = random_switches(passes), random_switches(passes, seed=1)
        for some, earlier in zip(after, before, strict=True):
            some[:, :, :, :4] = earlier[:, :, :, :4]
        found = passes.logits(after, first=4, course=passes.course(before))
        torch.testing.assert_close(found, passes.logits(after), **CLOSE)


@pytest.mark.parametrize("gates", ["dense", "all"])
@any_off
def test_frozen_weights_are_those_of_the_whole_model(gates, off, build, prompts):
    model, ids = build("llama", gates), prompts[0][:1]
    weights = whole_weights(model, ids)
    with Stack(model) as stack, torch.no_grad():
        passes = passes_of(stack, [some[:1] for some in prompts], off, frozen=True)
        kept = random_switches(passes)
        found = passes.logits(kept)
    with edit(model, instead=passes.instead) as edits:
        edits.close()
        for layer, head, query, key in listed(kept):
            weight = float(weights[layer, 0, head, query, key])
            edits.clamp(layer=layer, head=head, query=query, key=key, weight=weight)
        torch.testing.assert_close(found, next_token(model, ids), **CLOSE)
        edits.keep(listed(kept))
        assert (found - next_token(model, ids)).abs().max() > 0.01


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("gates", ["dense", "centered"])
@any_off
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_finite_differences(family, gates, off, frozen, build, prompts):
    step = 1e-3  # so large because llama's norms are float32
    with Stack(build(family, gates)) as stack:
        passes = passes_of(stack, prompts, off, frozen=frozen)
        generator = torch.Generator().manual_seed(0)
        places = [some.double()[None] for some in passes.open]
        kept = [torch.rand(some.shape, generator=generator).double().requires_grad_() for some in places]
        passes.logits(kept)[:, 5].sum().backward()
        for layer in range(2):
            direction = torch.randn(places[layer].shape, generator=generator).double() * places[layer]
            with torch.no_grad():
                ahead, behind = (
                    passes.logits([some + sign * direction if at == layer else some for at, some in enumerate(kept)])
                    for sign in (step, -step)
                )
            slope = (ahead - behind)[:, 5].sum() / (2 * step)
            assert slope.abs() > 0.01
            torch.testing.assert_close((kept[layer].grad * direction).sum(), slope, rtol=1e-3, atol=1e-3)


def test_open_edges_are_those_of_either_prompt(build, prompts):
    model = build("llama", "all")
    weights = [whole_weights(model, ids) for ids in prompts]
    with Stack(model) as stack:
        for off in OFF:
            expected = (weights[0] > 0) | ((weights[1] > 0) & (off == "corrupted"))
            assert torch.equal(torch.stack(passes_of(stack, prompts, off).open), expected)


def test_what_is_missing_is_an_error(build, prompts):
    ids, corrupted = prompts
    with Stack(build("llama", "dense")) as stack:
        with pytest.raises(ValueError, match="need the means"):
            Passes(stack, ids)
        for wrong in (None, corrupted[:, 1:], corrupted[:1]):
            with pytest.raises(ValueError, match="same shape"):
                Passes(stack, ids, "corrupted", corrupted=wrong)
