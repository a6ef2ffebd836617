"""A sparse model in TransformerLens' bridge: logits, caches, edits and generation are the model's own, and every way to
run it without its gates is refused."""

import copy

import pytest
import torch

from lit_sparse import sparsify
from lit_sparse.attention import gates_of, open_edges, reference_pattern
from lit_sparse.models.transformer_lens import transformer_bridge
from tests.interop.packages import needed

needed("transformer_lens")

FAMILIES = [
    "llama",
    "gpt2",
    "qwen2",
    "gemma2",
    "gpt_neox",
]  # plain, fused projections, value biases, two norms, parallel
GATE = {"family": "contribution", "threshold": 0.2}
EXACT = {"rtol": 1e-4, "atol": 1e-5}


def biased(model):
    """Random biases and scales of norms, which are zeros and ones in a new model."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) / 2)
    return model


@pytest.fixture
def models(make_model):
    """models(family) -> the same sparse model twice: one to be wrapped, one for comparison."""

    def make(family, **gate):
        model = sparsify(biased(make_model(family)), GATE | gate)
        return model, copy.deepcopy(model)

    return make


def boot(model):
    """TransformerLens' own way, which computes attention without gates."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    return build_bridge_from_module(model, type(model).__name__, hf_config=model.config)


def decoder_layers(model):
    return next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_and_cached_activations_are_the_models_own(models, family, tokens):
    model, plain = models(family)
    ids, kept = tokens(2, 9), {}
    for layer, block in enumerate(decoder_layers(plain)):
        attention = block.attn if family == "gpt2" else block.attention if family == "gpt_neox" else block.self_attn
        *_, output = (child for child in attention.children() if hasattr(child, "weight") and child.weight.dim() == 2)
        block.register_forward_pre_hook(
            lambda _, inputs, at=layer: kept.update({f"blocks.{at}.hook_resid_pre": inputs[0]})
        )
        block.mlp.register_forward_hook(lambda *a, at=layer: kept.update({f"blocks.{at}.mlp.hook_out": a[2]}))
        attention.register_forward_hook(lambda *a, at=layer: kept.update({f"blocks.{at}.attn.hook_out": a[2][0]}))
        output.register_forward_pre_hook(
            lambda _, inputs, at=layer: kept.update({f"blocks.{at}.attn.hook_z": inputs[0]})
        )
    expected = plain(ids).logits
    bridge = transformer_bridge(model)
    logits, cache = bridge.run_with_cache(ids)
    torch.testing.assert_close(logits, expected, **EXACT)
    torch.testing.assert_close(bridge(ids, attention_mask=torch.ones_like(ids)), expected, **EXACT)
    assert len(kept) == 8
    for name, value in kept.items():
        torch.testing.assert_close(cache[name].flatten(2), value.flatten(2), **EXACT)
    assert not torch.allclose(logits, dense_logits(plain, ids), **EXACT), "the gates must matter here"


def dense_logits(model, ids):
    from lit_sparse import desparsify

    return desparsify(copy.deepcopy(model))(ids).logits


@torch.no_grad()
def test_edits_reach_the_gates(models, tokens):
    """A query that TransformerLens changes opens and closes other edges, as one that a plain hook changes does."""
    model, plain = models("llama")
    ids, bridge = tokens(1, 9), transformer_bridge(model)
    edited = bridge.run_with_hooks(ids, fwd_hooks=[("blocks.1.attn.hook_q", lambda query, hook: query * 3)])
    plain.model.layers[1].self_attn.q_proj.register_forward_hook(lambda module, inputs, output: output * 3)
    torch.testing.assert_close(edited, plain(ids).logits, **EXACT)
    assert not torch.allclose(edited, bridge(ids), **EXACT)
    ablated = bridge.run_with_hooks(ids, fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: z * 0)])
    plain.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0,))
    plain.model.layers[1].self_attn.q_proj._forward_hooks.clear()
    torch.testing.assert_close(ablated, plain(ids).logits, **EXACT)


def test_gradients(models, tokens):
    model, plain = models("llama")
    ids, weights = tokens(1, 9), dict(model.named_parameters())
    transformer_bridge(model)(ids)[0, -1, 3].backward()
    plain(ids).logits[0, -1, 3].backward()
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(weights[name].grad, weight.grad, **EXACT)
    assert weights["model.layers.0.self_attn.q_proj.weight"].grad.any()


@torch.no_grad()
def test_generation_and_what_else_reads_the_model(models, tokens):
    model, plain = models("llama")
    ids, bridge = tokens(1, 5), transformer_bridge(model)
    greedy = {"max_new_tokens": 4, "do_sample": False}
    written = bridge.generate(ids, return_type="tokens", verbose=False, stop_at_eos=False, **greedy)
    assert torch.equal(written, plain.generate(ids, eos_token_id=None, **greedy))
    assert len(gates_of(model)) == 2
    assert torch.equal(reference_pattern(model, ids).is_open, reference_pattern(plain, ids).is_open)
    for ours, theirs in zip(open_edges(model, ids), open_edges(plain, ids), strict=True):
        assert torch.equal(ours.indices, theirs.indices)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_their_own_attention_is_refused(models, family, length, tokens):
    model, _ = models(family)
    bridge = boot(model)
    with pytest.raises(RuntimeError, match=r"transformer_bridge keeps them|changed to 'eager'"):
        bridge(tokens(1, length))


@torch.no_grad()
def test_what_cannot_be_wrapped(make_model, tokens):
    with pytest.raises(ValueError, match="no gates"):
        transformer_bridge(make_model("llama"))
    unknown, ids = sparsify(make_model("helium")), tokens(1, 5)
    expected = unknown(ids).logits
    with pytest.raises(ValueError, match="HeliumForCausalLM"):
        transformer_bridge(unknown)
    assert torch.equal(unknown(ids).logits, expected)


@torch.no_grad()
def test_weight_processing(models, tokens):
    """It is exact where values have no biases, and refused where it would change what gates read."""
    ids = tokens(1, 9)
    model, plain = models("llama")
    expected, bridge = plain(ids).logits.softmax(-1), transformer_bridge(model)
    bridge.enable_compatibility_mode(disable_warnings=True)
    torch.testing.assert_close(bridge(ids).softmax(-1), expected, **EXACT)
    for family in ("qwen2", "gpt2", "phi3"):
        model, plain = models(family)
        bridge = transformer_bridge(model)
        with pytest.raises(ValueError, match="no_processing=True"):
            bridge.enable_compatibility_mode(disable_warnings=True)
        bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
        torch.testing.assert_close(bridge(ids), plain(ids).logits, **EXACT)


@pytest.mark.parametrize("option", ["attn_result", "split_qkv_input", "attn_in"])
def test_options_that_take_attention_apart(models, option):
    bridge = transformer_bridge(models("llama")[0])
    with pytest.raises(NotImplementedError, match="use_" + option):
        getattr(bridge, f"set_use_{option}")(True)
