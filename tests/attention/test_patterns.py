"""Attention patterns: the formula written out, the same form for dense and sparse models."""

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import lit_sparse
from lit_sparse.attention import attention_modules, gates_of, open_edges, reference_pattern, sparsify
from lit_sparse.attention.dense_attention import measure_centers
from lit_sparse.models.adapters import LoraConfig, add_lora
from tests.attention.conftest import described

FAMILIES = ["llama", "gpt2", "mistral", "qwen3", "gemma2", "gpt_neox", "opt", "phi"]
GATES = ["contribution", "probability", "logit"]


def closing(gate, **options):
    return described(gate, threshold=0.1, sharpness=3.0, bias=0.2, **options)


@pytest.mark.parametrize("normalisation", ["all", "open"])
@pytest.mark.parametrize("gate", GATES)
def test_the_formula_in_float64(gate, normalisation, make_model, tokens):
    """Layer by layer from the layer's own inputs, edge by edge."""
    model = sparsify(make_model("llama").double(), closing(gate, normalisation=normalisation))
    ids, inputs = tokens(2, 7), []
    hooks = [
        module.register_forward_pre_hook(lambda module, _, keys: inputs.append(keys), with_kwargs=True)
        for module in attention_modules(model)
    ]
    patterns = lit_sparse.attention_patterns(model, ids)
    ungated = lit_sparse.attention_patterns(model, ids, gated=False)
    for hook in hooks:
        hook.remove()
    some_closed = False
    for layer, (module, keys) in enumerate(zip(attention_modules(model), inputs, strict=False)):
        hidden, gates = keys["hidden_states"], module.edge_gate
        heads = (2, 7, -1, module.head_dim)
        query, key, value = (
            projection(hidden).view(heads).transpose(1, 2)
            for projection in (module.q_proj, module.k_proj, module.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *keys["position_embeddings"])
        for head in range(4):
            cutoff = float(gates.form().cutoff[head])
            for i in range(7):
                s = key[:, head // 2, : i + 1] @ query[:, head, i, :, None] * module.scaling
                p = s[..., 0].softmax(-1)
                z = s[..., 0] if gate == "logit" else p.log()
                if gate == "contribution":
                    z = z + value[:, head // 2, : i + 1].norm(dim=-1).log()
                w = p * (z > cutoff)
                some_closed |= bool((w == 0).any())
                if normalisation == "open":
                    w = torch.where(w.sum(-1, keepdim=True) > 0, w / w.sum(-1, keepdim=True), w)
                torch.testing.assert_close(patterns[layer][:, head, i, : i + 1].double(), w.detach())
                torch.testing.assert_close(ungated[layer][:, head, i, : i + 1].double(), p.detach())
        assert not patterns[layer].triu(1).any()
    assert some_closed


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_sparse_model_they_are_its_open_edges(family, make_model, tokens):
    model, ids = sparsify(make_model(family), closing("probability")), tokens(2, 11)
    patterns = lit_sparse.attention_patterns(model, ids)
    assert [tuple(weights.shape) for weights in patterns] == [(2, 4, 11, 11)] * 2
    for weights, edges in zip(patterns, open_edges(model, ids), strict=True):
        assert torch.equal(weights.nonzero().T, edges.indices)
        torch.testing.assert_close(weights[tuple(edges.indices)], edges.weights, rtol=1e-5, atol=1e-6)
    single = reference_pattern(model, ids[:1])
    ungated = lit_sparse.attention_patterns(model, ids[:1], gated=False)
    torch.testing.assert_close(torch.cat(ungated), single.weights)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right", None])
def test_with_all_edges_open_both_kinds_agree(family, side, make_model, tokens):
    model, ids, mask = make_model(family), tokens(2, 9), None
    if side is not None:
        mask = torch.ones_like(ids)
        mask[1, slice(0, 3) if side == "left" else slice(6, 9)] = 0
    implementation = model.config._attn_implementation
    expected = lit_sparse.attention_patterns(model, ids, mask)
    assert model.config._attn_implementation == implementation
    sparsify(model, layers=lambda layer: False)
    for found, weights in zip(lit_sparse.attention_patterns(model, ids, mask), expected, strict=True):
        torch.testing.assert_close(found, weights, rtol=1e-4, atol=1e-5)
        real = torch.ones_like(ids) if mask is None else mask
        torch.testing.assert_close(found.sum(-1), real[:, None].expand(2, 4, 9).float())


def test_centered_gates_weigh_deviations(make_model, tokens):
    """A layer's output is its center plus what the pattern passes of the values' deviations."""
    model, ids = sparsify(make_model("llama"), closing("contribution", centered=True)), tokens(2, 8)
    measure_centers(model, [{"input_ids": ids, "position_ids": torch.arange(8).expand(2, 8)}])
    seen, module = [], attention_modules(model)[0]
    handles = [
        module.v_proj.register_forward_hook(lambda module, inputs, output: seen.append(output)),
        module.o_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])),
    ]
    weights = lit_sparse.attention_patterns(model, ids)[0]
    for handle in handles:
        handle.remove()
    values, output = seen[0].view(2, 8, 2, 8).transpose(1, 2), seen[1].view(2, 8, 4, 8)
    center = gates_of(model)[0].center
    passed = weights @ (values - center[:, None]).repeat_interleave(2, dim=1)
    expected = (passed + center.repeat_interleave(2, dim=0)[:, None]).transpose(1, 2)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_output_attentions_stay_counts(dtype, make_model, tokens):
    model, ids = sparsify(make_model("llama").to(dtype), closing("contribution")), tokens(4, 32)
    patterns = lit_sparse.attention_patterns(model, ids)
    counts = model(ids, output_attentions=True).attentions
    for weights, layer in zip(patterns, counts, strict=True):
        assert layer.shape == (4, 4, 3)
        assert torch.equal(layer[..., 1], (weights > 0).sum((-2, -1)).float())


def test_the_model_stays_as_it_was(make_model, tokens):
    model, ids = sparsify(make_model("llama"), closing("probability")).train(), tokens(2, 8)
    first = lit_sparse.attention_patterns(model, ids)
    assert model.training and model.config._attn_implementation == "lit_sparse"
    assert all(torch.equal(*pair) for pair in zip(first, lit_sparse.attention_patterns(model, ids), strict=True))
    wrapped = add_lora(model, LoraConfig(r=2))
    assert all(torch.equal(*pair) for pair in zip(first, lit_sparse.attention_patterns(wrapped, ids), strict=True))


def test_refusals(make_model, tokens):
    model, ids = sparsify(make_model("llama"), closing("probability")), tokens(1, 5)
    with lit_sparse.edit(model), pytest.raises(RuntimeError, match=r"leave lit_sparse\.edit first"):
        lit_sparse.attention_patterns(model, ids)
