"""The pieces compute what the model computes, for every family, and leave it as it was."""

import copy

import pytest
import torch

from lit_sparse import sparsify
from lit_sparse.anatomy.stack import Stack
from lit_sparse.attention import attention_modules, gates_of

FAMILIES = [
    "gpt2", "llama", "olmo", "olmo2", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt_neox", "opt", "phi",
    "phi3", "mixtral", "deepseek_v3",
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gated", [False, True, "centered"])
@torch.no_grad()
def test_the_pieces_are_the_model(family, gated, make_model, tokens):
    model, ids = make_model(family).train(), tokens(3, 9)
    if gated:
        sparsify(model, {"threshold": 0.15, "centered": gated == "centered"})
        for gate in gates_of(model) if gated == "centered" else []:
            gate.center.normal_()
    before, implementation = copy.deepcopy(model.state_dict()), model.config._attn_implementation
    expected = model.eval()(ids, use_cache=False).logits[:, -1]
    model.train()
    with Stack(model) as stack:
        residual = stack.embed(ids)
        total = residual.clone()
        for layer in range(2):
            heads, attention = stack.write(layer, stack.attend(layer, stack.project(layer, residual)))
            bias = stack.anatomy.layers[layer].output.bias
            if bias is None:
                torch.testing.assert_close(heads.sum(0), attention, rtol=1e-4, atol=1e-4)
            total = stack.finish_layer(layer, residual, attention)
            residual = stack.layer(layer, residual)
            torch.testing.assert_close(total, residual, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(stack.logits(residual), expected, rtol=1e-4, atol=1e-4)
    assert model.training and model.config._attn_implementation == implementation
    assert bool(attention_modules(model)) == bool(gated)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(model.eval()(ids, use_cache=False).logits[:, -1], expected, rtol=0, atol=0)


def test_a_family_that_is_not_understood_is_refused_and_left_as_it_was(make_model, tokens):
    model, ids = make_model("llama"), tokens(1, 9)
    layer = model.model.layers[0]
    whole = layer.forward
    layer.forward = lambda *args, **kwargs: 0.5 * whole(*args, **kwargs)
    expected = model(ids).logits
    with pytest.raises(ValueError, match=r"llama.*not understood"), Stack(model):
        pass
    assert not attention_modules(model)
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)
