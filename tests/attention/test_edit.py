"""Interventions on attention edges, against attention that is written out here."""

import pytest
import torch
from torch import nn

import lit_sparse
from lit_sparse import edit, sparsify
from lit_sparse.anatomy.stack import Stack
from lit_sparse.attention import (
    attention_modules,
    dense,
    desparsify,
    edge_counts,
    gates_of,
    open_edges,
    reference_pattern,
)
from lit_sparse.attention.edge_weights import Passed
from lit_sparse.attention.masks import packed_causal_mask
from lit_sparse.models.adapters import LoraConfig, add_lora
from tests.attention.test_families import FAMILIES, TOLERANCE, WINDOWED

THRESHOLD = 0.15  # of the softmax's probability: closes about half of the edges here
FAR = 500
"""A position that no sequence here has: edits there go the way of edits and change nothing."""
HELD = {"min_new_tokens": 7, "max_new_tokens": 7, "do_sample": False}

every_family = pytest.mark.parametrize("family", FAMILIES)
either = pytest.mark.parametrize("gated", [False, True], ids=["dense", "sparse"])


@torch.no_grad()
def logits(model, ids, **keys):
    return model(input_ids=ids, **{"use_cache": False} | keys).logits


def made(make_model, family, gated, **gates):
    model = make_model(family)
    return sparsify(model, {"threshold": THRESHOLD, **gates}) if gated else model


def constants(batch, length, dim=8, dtype=torch.float32):
    """Something for closed edges to pass at the first positions, also where no mask allows an edge."""
    generator = torch.Generator().manual_seed(2)
    weights, values = (
        torch.randn(2, batch, 4, length, some, dtype=dtype, generator=generator) for some in (length, dim)
    )
    return list(map(Passed, weights, values))


def state_of(model):
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    return attributes, hooks, list(model.state_dict()), model.name_or_path, model.config._attn_implementation


@pytest.fixture
def eager(monkeypatch):
    """`eager(model, ids, change)`: transformers' own eager attention with other weights, `change(layer, softmax)`.
    They pass through dropout, the only place where it is given four dimensions."""

    def run(model, ids, change, **keys):
        layers = iter(range(len(model.base_model.layers if hasattr(model.base_model, "layers") else "ab")))

        def dropout(weights, *_, **__):
            return change(next(layers), weights) if weights.dim() == 4 else weights

        model.set_attn_implementation("eager")
        with monkeypatch.context() as patch:
            patch.setattr(nn.functional, "dropout", dropout)
            found = logits(model, ids, **keys)
        assert next(layers, None) is None
        return found

    return run


def gated_weights(softmax, gates):
    if gates == "dense":
        return softmax
    weights = softmax * (softmax > THRESHOLD)
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-9) if gates == "open" else weights


@every_family
@either
def test_without_edits_it_is_the_model_and_afterwards_too(family, gated, make_model, tokens):
    model, ids = made(make_model, family, gated), tokens(2, 11)
    expected, before = logits(model, ids), state_of(model)
    with edit(model) as edits:
        torch.testing.assert_close(logits(model, ids), expected, **TOLERANCE)
        edits.close(query=FAR)
        torch.testing.assert_close(logits(model, ids), expected, **TOLERANCE)
        edits.close()
        assert (logits(model, ids) - expected).abs().max() > 0.01
        edits.open(query=FAR)
        edits.clear()
        torch.testing.assert_close(logits(model, ids), expected, **TOLERANCE)
        edits.close(head=0)
    assert torch.equal(logits(model, ids), expected)
    assert state_of(model) == before and bool(attention_modules(model)) == gated


@every_family
@pytest.mark.parametrize("gates", ["dense", "all", "open"])
def test_edits_are_what_is_written_out(family, gates, make_model, tokens, eager):
    def change(layer, softmax):
        own = gated_weights(softmax, gates)
        weights, either = own.clone(), torch.where(own > 0, own, softmax)
        if layer == 0:
            weights[:, 2] = 0
            weights[:, 1, 7, 6] = 0.7
            weights[:, 3, :, 5] = 0
        else:
            weights[:, 0, [[4], [6]], [3, 5]] = -0.25 * (softmax[:, 0, [[4], [6]], [3, 5]] > 0)
            weights[:, 2, 8, 7:9] = 0
            weights[:, 3] = either[:, 3]
            weights[:, 3, 3] = 0
            weights[:, 3, 3, 2] = either[:, 3, 3, 2]
        return weights

    ids, model = tokens(2, 9), made(make_model, family, gates != "dense", normalisation=gates.replace("dense", "all"))
    expected = eager(make_model(family), ids, change)
    with edit(model) as edits:
        edits.close(layer=0, head=2)
        edits.clamp(layer=0, head=1, query=7, key=6, weight=0.7)
        edits.close(layer=[0], head=3, key=5)
        edits.clamp(layer=1, head=0, query=[4, 6], key=(3, 5), weight=-0.25)
        edits.close(layer=1, head=range(2, 3), query=8, key=torch.tensor([7, 8]))
        edits.close(layer=1, head=3)
        edits.open(layer=1, head=3)
        edits.clamp(layer=1, head=3, query=3, weight=7)
        edits.close(layer=1, head=3, query=3)
        edits.open(layer=1, head=3, query=3, key=2)
        torch.testing.assert_close(logits(model, ids), expected, **TOLERANCE)
    if gates == "dense":
        assert (expected - logits(model, ids)).abs().max() > 0.01


@every_family
@either
def test_only_kept_edges_pass(family, gated, make_model, tokens, eager):
    kept = [(0, 1, 4, 3), (0, 2, 8, 8), (1, 3, 7, 6), (1, 3, 8, 7), (1, 0, FAR, 3)]

    def change(layer, softmax):
        own, weights = gated_weights(softmax, "all" if gated else "dense"), torch.zeros_like(softmax)
        for edge in kept[:4]:
            if edge[0] == layer:
                weights[:, edge[1], edge[2], edge[3]] = own[:, edge[1], edge[2], edge[3]]
        weights[:, 0, 8, 8] = softmax[:, 0, 8, 8]
        return weights

    ids, model = tokens(2, 9), made(make_model, family, gated)
    expected = eager(make_model(family), ids, change)
    with edit(model) as edits:
        edits.clamp(layer=0, head=1, query=4, key=3, weight=3)
        edits.keep(kept)
        edits.open(head=0, query=8, key=8)
        torch.testing.assert_close(logits(model, ids), expected, **TOLERANCE)
        counts = edge_counts(model(ids, use_cache=False, output_attentions=True).attentions)
        assert counts.opened.sum() <= 2 * 6 and counts.allowed.sum() > 2 * 100
        edits.keep([])
        closed = logits(model, ids)
    model = made(make_model, family, gated)
    for module in model.modules():
        for name in ("o_proj", "c_proj", "dense", "out_proj"):
            if hasattr(module, name) and ("attn" in type(module).__name__.lower() or "Attention" in str(type(module))):
                getattr(module, name).register_forward_pre_hook(lambda _, inputs: (inputs[0] * 0, *inputs[1:]))
    torch.testing.assert_close(closed, logits(model, ids), **TOLERANCE)


@every_family
@either
def test_edits_of_positions_hold_with_a_cache(family, gated, make_model, tokens):
    """Windows of 3 (conftest) drop keys from the cache: positions stay those of the sequence. What closed edges pass
    ends at position 10, between two parts of the prompt."""
    model, ids = made(make_model, family, gated), tokens(2, 12, seed=4)
    unedited = model.generate(ids, output_logits=True, return_dict_in_generate=True, **HELD)
    with edit(model, instead=constants(2, 10, 6 if family == "deepseek_v3" else 8)) as edits:
        edits.close(layer=0, head=1)
        edits.clamp(layer=1, head=2, query=[10, 11, 13, 15], key=range(8, 16), weight=0.5)
        edits.close(layer=1, head=3, query=16, key=15)
        edits.open(layer=0, head=3, query=[9, 14])
        edits.close(head=0, key=[4, 12])
        whole, cache, steps = logits(model, ids), None, []
        for part in ids.split([5, 1, 1, 1, 3, 1], dim=1):
            with torch.no_grad():
                out = model(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, **TOLERANCE)
        cached, uncached = (
            model.generate(ids, use_cache=use, output_logits=True, return_dict_in_generate=True, **HELD)
            for use in (True, False)
        )
    assert torch.equal(cached.sequences, uncached.sequences) and cached.sequences.shape == (2, 19)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), **TOLERANCE)
    assert (cached.logits[0] - unedited.logits[0]).abs().max() > 1e-3


def test_an_edit_of_a_token_that_is_generated_changes_it_and_none_before(make_model, tokens):
    for family in ("llama", "mistral", "gpt2"):
        model, ids = make_model(family), tokens(1, 12, seed=4)
        options = {"output_logits": True, "return_dict_in_generate": True, **HELD}
        before = model.generate(ids, **options).logits
        with edit(model) as edits:
            edits.close(layer=1, query=15)
            after = model.generate(ids, **options).logits
        changed = [float((a - b).abs().max()) > 1e-3 for a, b in zip(after, before, strict=True)]
        assert changed[:5] == [False, False, False, False, True]  # query 15 gives the fifth: the prompt's last is 11


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma2"])
def test_a_static_cache_changes_nothing(family, make_model, tokens):
    model, ids = made(make_model, family, True), tokens(2, 9, seed=7)
    options = {"output_logits": True, "return_dict_in_generate": True, "disable_compile": True, **HELD}
    with edit(model) as edits:
        edits.close(head=1, key=[7, 10])
        edits.clamp(query=[8, 11, 13], key=[7, 10, 12], weight=0.6)
        static = model.generate(ids, cache_implementation="static", **options)
        dynamic = model.generate(ids, **options)
    assert torch.equal(static.sequences, dynamic.sequences)
    torch.testing.assert_close(torch.stack(static.logits), torch.stack(dynamic.logits), **TOLERANCE)


@every_family
@either
@pytest.mark.parametrize("masked", [[0, 1, 2], [1, 4]], ids=["left", "holes"])
def test_positions_count_padding(family, gated, masked, make_model, tokens, eager):
    if family == "opt" and masked[0] == 1:
        pytest.skip("positions that do not go up are documents, which opt's own attention would mix")

    def change(layer, softmax):
        weights = gated_weights(softmax, "all" if gated else "dense").clone()
        if layer == 1:
            weights[:, 1, 7, 5:7] = 0.4 * (softmax[:, 1, 7, 5:7] > 0)
            weights[:, 2, 6] = 0
            weights[:, 3, :, masked[0]] = 2.0 * (softmax[:, 3, :, masked[0]] > 0)
        return weights

    ids, mask = tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, masked] = 0
    keys = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    expected, model = eager(make_model(family), ids, change, **keys), made(make_model, family, gated)
    real = mask.bool()
    with edit(model) as edits:
        edits.clamp(layer=1, head=1, query=7, key=[5, 6], weight=0.4)
        edits.close(layer=1, head=2, query=6)
        edits.clamp(layer=1, head=3, key=masked[0], weight=2)
        torch.testing.assert_close(logits(model, ids, **keys)[real], expected[real], **TOLERANCE)
        prefix = {name: some[:, :7] for name, some in keys.items()}
        with torch.no_grad():
            cache = model(ids[:, :7], use_cache=True, **prefix).past_key_values
            rest = {"attention_mask": mask, "position_ids": keys["position_ids"][:, 7:]}
            last = model(ids[:, 7:], past_key_values=cache, use_cache=True, **rest).logits
        torch.testing.assert_close(last, expected[:, 7:], **TOLERANCE)
        if masked[0] == 0:
            cached, uncached = (
                model.generate(ids, attention_mask=mask, use_cache=use, **HELD) for use in (True, False)
            )
            assert torch.equal(cached, uncached)


@pytest.mark.parametrize("family", WINDOWED)
def test_an_edge_outside_the_window_stays_closed(family, make_model, tokens):
    model, ids = make_model(family), tokens(1, 12)
    with edit(model) as edits:
        edits.close(query=FAR)
        expected = logits(model, ids)
        edits.open(layer=0, key=range(8), query=11)
        edits.clamp(layer=0, key=range(8), query=11, weight=1)
        assert torch.equal(logits(model, ids), expected), "layer 0 has a window of 3"


# --- a llama in float64, from its weights --------------------------------------------------------------------------


FLOAT64 = {"rtol": 0, "atol": 3e-6}  # but transformers' norms and rotations are float32


def rotated(x, angles):
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


def llama(model, ids, attend):
    """Logits of `ids` (T) by the textbook. attend(layer, softmax (H, T, T), value (H, T, D)) -> (H, T, D)."""
    config, weights = model.config, {name: some.double() for name, some in model.state_dict().items()}
    length, dim = len(ids), config.head_dim
    groups = config.num_attention_heads // config.num_key_value_heads
    inverse = config.rope_parameters["rope_theta"] ** -(torch.arange(0, dim, 2).double() / dim)
    angles = (torch.arange(length)[:, None] * inverse).repeat(1, 2)

    def norm(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weights[name]

    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}."
        read = norm(x, f"{name}input_layernorm.weight")
        query, key, value = (
            (read @ weights[f"{name}self_attn.{kind}_proj.weight"].T).view(length, -1, dim).transpose(0, 1)
            for kind in "qkv"
        )
        query, key = rotated(query, angles), rotated(key, angles).repeat_interleave(groups, 0)
        scores = (query @ key.transpose(1, 2)) / dim**0.5
        softmax = scores.masked_fill(~torch.ones(length, length).tril().bool(), -torch.inf).softmax(-1)
        heads = attend(layer, softmax, value.repeat_interleave(groups, 0))
        x = x + heads.transpose(0, 1).flatten(1) @ weights[f"{name}self_attn.o_proj.weight"].T
        read = norm(x, f"{name}post_attention_layernorm.weight")
        gate, up = (read @ weights[f"{name}mlp.{kind}_proj.weight"].T for kind in ("gate", "up"))
        x = x + (nn.functional.silu(gate) * up) @ weights[f"{name}mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ weights["lm_head.weight"].T


def centered_llama(make_model):
    model = sparsify(make_model("llama"), {"threshold": THRESHOLD, "centered": True})
    for gate in gates_of(model):
        gate.center.normal_(generator=torch.Generator().manual_seed(1))
    return model.double()


@pytest.mark.parametrize("gates", ["dense", "all", "centered"])
@pytest.mark.parametrize("with_constants", [False, True])
def test_a_llama_in_float64(gates, with_constants, make_model, tokens):
    model = centered_llama(make_model) if gates == "centered" else made(make_model, "llama", gates == "all").double()
    ids = tokens(1, 9)
    centers = (
        [0.0, 0.0] if gates != "centered" else [gate.head_center(torch.float64)[:, None] for gate in gates_of(model)]
    )
    instead = constants(1, 7, dtype=torch.float64)

    def attend(layer, softmax, value):
        own = gated_weights(softmax, gates)
        weights, closed = own.clone(), torch.zeros(4, 9, 9, dtype=torch.bool)
        if layer == 1:
            weights[2], closed[2] = 0, torch.ones(9, 9).tril()
            weights[0, 7, 3] = 0.5
            weights[1, 5, 4], closed[1, 5, 4] = 0, True
            weights[3, 8, :] = softmax[3, 8, :]
        output = centers[layer] + weights @ (value - centers[layer])
        if with_constants:
            constant = instead[layer].weights[0, ..., None] * instead[layer].values[0][:, None]
            output[:, :7] += (constant * closed[:, :7, :7, None]).sum(2)
        return output

    with edit(model, instead=instead if with_constants else None) as edits:
        edits.close(layer=1, head=2)
        edits.clamp(layer=1, head=0, query=7, key=3, weight=0.5)
        edits.clamp(layer=1, head=1, query=5, key=4, weight=0.5)
        edits.close(layer=1, head=1, query=5, key=4)
        edits.close(layer=1, head=3, query=8)
        edits.open(layer=1, head=3, query=8)
        found = logits(model, ids)[0]
    torch.testing.assert_close(found, llama(model, ids[0], attend), **FLOAT64)


def test_closing_a_head_takes_away_what_it_writes(make_model, tokens):
    model, ids = make_model("llama").double(), tokens(1, 9)

    def attend(layer, softmax, value):
        heads = softmax @ value
        if layer == 0:
            heads[1] = 0
        return heads

    with edit(model) as edits:
        edits.close(layer=0, head=1)
        found = logits(model, ids)[0]
    torch.testing.assert_close(found, llama(model, ids[0], attend), **FLOAT64)


# --- the context ---------------------------------------------------------------------------------------------------


@either
def test_errors_inside_restore_the_model(gated, make_model, tokens):
    model, ids = made(make_model, "llama", gated), tokens(1, 6)
    expected, before = logits(model, ids), state_of(model)
    with pytest.raises(KeyError), edit(model) as edits:
        edits.close()
        raise KeyError
    assert state_of(model) == before and torch.equal(logits(model, ids), expected)
    with pytest.raises(ValueError), edit(model) as edits:
        edits.close(layer=2)
    assert state_of(model) == before
    for wrong, message in (
        (constants(1, 6)[:1], "1 layers, and the model has 2"),
        (constants(1, 6, dim=6), r"layer 0 has .* values \(1, 4, 6, 6\), not .* keys, 8\)"),
        (
            [constants(1, 6)[0], Passed(torch.zeros(1, 2, 6, 6), torch.zeros(1, 2, 6, 8))],
            r"layer 1 has .*\(1, 2, 6, 6\)",
        ),
        ([Passed(torch.zeros(1, 4, 6, 6), torch.zeros(1, 4, 5, 8))] * 2, "layer 0"),
        ([Passed(torch.zeros(4, 6, 6), torch.zeros(4, 6, 8))] * 2, "layer 0"),
    ):
        with pytest.raises(ValueError, match=message), edit(model, instead=wrong):
            pass
        assert state_of(model) == before and torch.equal(logits(model, ids), expected)
    with edit(model, instead=constants(2, 6)) as edits:
        edits.close(head=0)
        assert logits(model, ids.repeat(2, 1)).isfinite().all()
        with pytest.raises(ValueError, match="of 2 samples, and the batch has 1"):
            logits(model, ids)


@either
def test_one_context_at_a_time(gated, make_model, tokens):
    model, ids = made(make_model, "llama", gated), tokens(1, 6)
    expected = logits(model, ids)
    with edit(model) as edits:
        edits.close(head=1)
        edited = logits(model, ids)
        with pytest.raises(RuntimeError, match="being edited already"), edit(model):
            pass
        with pytest.raises(RuntimeError, match=r"leave lit_sparse\.edit"):
            reference_pattern(model, ids)
        with pytest.raises(RuntimeError, match=r"leave lit_sparse\.edit before"):
            desparsify(model)
        assert torch.equal(logits(model, ids), edited)
    assert torch.equal(logits(model, ids), expected)
    for change in (edits.close, edits.clear, lambda: edits.keep([])):
        with pytest.raises(RuntimeError, match="over"):
            change()


def test_two_models_at_the_same_time(make_model, tokens):
    ids, one, other = tokens(1, 6), make_model("llama"), sparsify(make_model("llama"), {"threshold": THRESHOLD})

    def alone(model, head):
        with edit(model) as edits:
            edits.close(head=head)
            return logits(model, ids)

    expected = [alone(one, 0), alone(other, 1)]
    with edit(one) as first, edit(other) as second:
        first.close(head=0)
        second.close(head=1)
        assert torch.equal(logits(one, ids), expected[0]) and torch.equal(logits(other, ids), expected[1])


def test_edits_are_never_left_out_silently(make_model, tokens):
    model, ids = made(make_model, "llama", True), tokens(1, 6)
    with edit(model) as edits:
        edits.close(head=1)
        expected = logits(model, ids)
        model.set_attn_implementation("sdpa")
        with pytest.raises(RuntimeError, match=r"inside lit_sparse\.edit something set another"):
            logits(model, ids)
        with pytest.raises(RuntimeError, match=r"inside lit_sparse\.edit"):
            model.generate(ids, max_new_tokens=2)
    for inside in (lambda: open_edges(model, ids), lambda: Stack(model).__enter__()):
        with edit(model) as edits:
            edits.close(head=1)
            assert torch.equal(logits(model, ids), expected)
            for _ in range(2):
                with pytest.raises(RuntimeError):
                    inside()
                    logits(model, ids)
    with dense(model), pytest.raises(RuntimeError, match="gates are off"), edit(model):
        pass
    model.train()
    with edit(model), pytest.raises(RuntimeError, match=r"model\.eval\(\)"):
        logits(model, ids)
    assert model.training and all(gate.training for gate in gates_of(model))


def test_masks_of_four_dimensions(make_model, tokens):
    model, ids = make_model("llama"), tokens(1, 8)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    with edit(model) as edits:
        edits.close(layer=0, query=7, key=5)
        expected = logits(model, ids, position_ids=positions)
        given = logits(model, ids, position_ids=positions, attention_mask=packed_causal_mask(positions))
        torch.testing.assert_close(given, expected, **TOLERANCE)
        torch.testing.assert_close(expected[:, :5], logits(model, ids[:, :5]), **TOLERANCE)
        cache = model(ids, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="four dimensions"):
            model(ids[:, :1], past_key_values=cache, attention_mask=torch.ones(1, 1, 1, 9, dtype=torch.bool))


def test_what_does_not_exist_is_an_error(make_model):
    with edit(make_model("llama")) as edits:
        for names, message in (
            ({"layer": 2}, "no layer 2: this model has 2"),
            ({"layer": -1}, "no layer -1: this model has 2"),
            ({"head": 4}, "no head 4: layer 0 has 4"),
            ({"layer": 1, "head": [0, -1]}, "no head -1: layer 1 has 4"),
            ({"query": -1}, "query -1: positions count from the beginning"),
            ({"key": [3, -2]}, "key -2: positions"),
            ({"query": 3, "key": 4}, "query 3 cannot attend to key 4"),
            ({"query": [1, 3], "key": [4, 5]}, "query 3 cannot attend to key 4"),
        ):
            for change in (edits.close, edits.open, lambda **names: edits.clamp(weight=1, **names)):
                with pytest.raises(ValueError, match=message):
                    change(**names)
        for edge, message in (
            ((2, 0, 3, 1), "no layer 2"),
            ((0, 4, 3, 1), "no head 4"),
            ((0, 0, 1, 3), "query 1 cannot"),
            ((0, 0, -1, -3), "query -1"),
            ((0, 0, 1), r"an edge is .* not \(0, 0, 1\)"),
        ):
            with pytest.raises(ValueError, match=message):
                edits.keep([(0, 0, 0, 0), edge])
        for weight in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match="finite"):
                edits.clamp(weight=weight)
        for wrong in (1.5, "3", [0.5]):
            with pytest.raises(TypeError, match="head is an int"):
                edits.close(head=wrong)
        assert repr(edits) == "<edit of 2 layers: nothing>"
    with pytest.raises(ValueError, match="ALiBi"), edit(make_model("bloom")):
        pass


def test_it_says_what_it_is(make_model):
    with lit_sparse.edit(make_model("llama")) as edits:
        edits.close(layer=1, head=2)
        edits.clamp(query=range(9), key=[0], weight=0.5)
        edits.open()
        assert repr(edits) == (
            "<edit of 2 layers: close(layer=1, head=2), clamp(query=[0, 1, 2, 3, ...], key=0, weight=0.5), open()>"
        )
        for _ in range(3):
            edits.open()
        assert repr(edits).endswith("open(), open(), 2 more>")
        edits.keep([(0, 0, 3, 1)])
        assert repr(edits) == "<edit of 2 layers: keep(1 edges)>"


def test_adapters_gradients_and_half_precision(make_model, tokens):
    ids = tokens(1, 6)
    model = made(make_model, "llama", True)
    with edit(model) as edits:
        edits.close(head=1)
        expected = logits(model, ids)
        model(ids, use_cache=False).logits.sum().backward()
        assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0
    wrapped = add_lora(made(make_model, "llama", True), LoraConfig(r=2)).eval()
    before = logits(wrapped, ids)
    with edit(wrapped) as edits:
        edits.close(head=1)
        torch.testing.assert_close(logits(wrapped, ids), expected, **TOLERANCE)
    assert torch.equal(logits(wrapped, ids), before)
    half = make_model("llama").bfloat16()
    with edit(half, instead=constants(1, 6)) as edits:
        edits.close(head=1)
        assert logits(half, ids).dtype is torch.bfloat16
