"""A sparsified model never runs dense unnoticed, whatever else is done with it."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lit_sparse import desparsify, sparsify
from lit_sparse.attention import DenseAttentionError, attention_modules, dense
from lit_sparse.models.adapters import BaseSwitch, LoraConfig, add_lora
from lit_sparse.models.base import load_model


@pytest.fixture
def ids():
    return torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(llama_folder):
    return sparsify(load_model(str(llama_folder)), {"threshold": 0.2})


@torch.no_grad()
def logits(model, ids):
    return model(ids, use_cache=False).logits


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_another_implementation_is_an_error_that_says_what_to_do(model, ids, implementation):
    expected = logits(model, ids)
    model.set_attn_implementation(implementation)
    with pytest.raises(DenseAttentionError, match=rf"changed to '{implementation}'.*lit_sparse.desparsify\(model\)"):
        logits(model, ids)
    with pytest.raises(DenseAttentionError):
        model.base_model(ids)
    with pytest.raises(DenseAttentionError):
        model.generate(ids, max_new_tokens=2)
    model.set_attn_implementation("lit_sparse")
    assert torch.equal(logits(model, ids), expected)


def test_one_layer_is_enough(model, ids):
    layer = attention_modules(model)[1]
    layer.config = copy.deepcopy(layer.config)
    layer.config._attn_implementation = "sdpa"
    with pytest.raises(DenseAttentionError, match="changed to 'sdpa'"):
        logits(model, ids)


@pytest.mark.parametrize("layers", [1, 2])
def test_attention_that_something_else_computes(model, ids, layers):
    """As TransformerLens' bridge does: the model's forward runs, its attention modules' own does not."""

    class Replaced(nn.Module):
        def __init__(self, attention: nn.Module):
            super().__init__()
            self.attention = attention

        def forward(self, hidden_states, **_):
            return self.attention.o_proj(self.attention.q_proj(hidden_states)), None

    for layer in model.model.layers[:layers]:
        layer.self_attn = Replaced(layer.self_attn)
    with pytest.raises(DenseAttentionError, match=f"gates of {layers} of 2 attention layers"):
        logits(model, ids)


def test_a_wrapper_that_shows_what_it_wraps_counts_once(model, ids):
    """As TransformerLens' components do, which pass on attributes that they do not have."""

    class Shows(nn.Module):
        def __init__(self, attention: nn.Module):
            super().__init__()
            self.attention = attention

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.attention, name)

        def forward(self, *inputs, **keywords):
            return self.attention(*inputs, **keywords)

    expected = logits(model, ids)
    for layer in model.model.layers:
        layer.self_attn = Shows(layer.self_attn)
    assert torch.equal(logits(model, ids), expected)
    assert len(attention_modules(model)) == 2


def test_attention_that_breaks_on_the_gates_masks(model, ids):
    """Its error says where it comes from; errors of anything else stay as they are."""

    class Breaks(nn.Module):
        def forward(self, hidden_states, attention_mask, **_):
            return hidden_states + attention_mask[:, 0], None

    with pytest.raises(IndexError) as wrong_token:
        logits(model, ids + 1000)
    for layer in model.model.layers:
        layer.self_attn = Breaks()
    with pytest.raises(RuntimeError, match="must match the size") as error:
        logits(model, ids)
    assert [note for note in error.value.__notes__ if "gates of this sparse model had no part" in note]
    assert not hasattr(wrong_token.value, "__notes__")


def test_a_model_made_from_a_sparse_models_config(model, ids):
    other = AutoModelForCausalLM.from_config(model.config)
    with pytest.raises(DenseAttentionError, match="built from a sparse model's config"):
        logits(other, ids)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_watched_and_themselves(model, ids, copied):
    other = copied(model)
    assert torch.equal(logits(other, ids), logits(model, ids))
    other.set_attn_implementation("sdpa")
    with pytest.raises(DenseAttentionError):
        logits(other, ids)
    logits(model, ids)
    desparsify(other)
    assert not torch.equal(logits(other, ids), logits(model, ids))
    assert not other._forward_hooks and not other.base_model._forward_pre_hooks
    assert model._forward_hooks


def test_generation_that_exits_early(model, ids):
    """It drafts tokens with the first layers alone, which are gated as ever."""
    options = {"max_new_tokens": 6, "do_sample": False}
    drafted = model.generate(ids[:1], assistant_early_exit=1, **options)
    assert torch.equal(drafted, model.generate(ids[:1], **options))


def test_a_compiled_model_is_watched(model, ids):
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(logits(compiled, ids), logits(model, ids))
    model.set_attn_implementation("sdpa")
    with pytest.raises(DenseAttentionError):
        logits(compiled, ids)


def test_the_packages_own_ways_of_being_dense_are_none_of_it(model, llama_folder, ids):
    base = logits(load_model(str(llama_folder)), ids)
    with dense(model):
        assert torch.equal(logits(model, ids), base)
    wrapped = add_lora(model, LoraConfig(r=2))
    with BaseSwitch(wrapped).as_base():
        assert torch.equal(logits(wrapped, ids), base)
    model.set_attn_implementation("sdpa")
    with pytest.raises(DenseAttentionError):
        logits(wrapped, ids)


def test_gates_taken_away_on_purpose(model, llama_folder, ids):
    desparsify(model)
    assert torch.equal(logits(model, ids), logits(load_model(str(llama_folder)), ids))
    assert model.name_or_path == str(llama_folder)
    assert "save_pretrained" not in vars(model) and not hasattr(model, "edge_base_name")
