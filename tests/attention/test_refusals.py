"""What is refused, with the reason, leaving the model as it was."""

import pytest
import torch
from transformers import PreTrainedModel

from lit_sparse import desparsify, sparsify
from lit_sparse.attention import attention_modules, gates_of, reference_pattern
from lit_sparse.attention.bridge import gated_attention_forward


def fingerprint(model: PreTrainedModel, ids):
    """All that `sparsify` could leave behind: state names, attributes, flags, implementation, and the logits."""
    modules = [(name, set(vars(module)), module.training) for name, module in model.named_modules()]
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    return list(model.state_dict()), modules, model.config._attn_implementation, logits.tolist()


UNSUPPORTED = [
    ("bloom", {}, r"'bloom'.*attention interface.*ALiBi"),
    ("falcon", {"alibi": True, "head_dim": None}, r"'falcon'.*attention interface.*ALiBi"),
    ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4}, r"'mpt'.*attention interface.*ALiBi"),
    ("gptj", {"rotary_dim": 4}, r"'gptj'.*attention interface"),
    ("gpt_oss", {"num_local_experts": 4}, r"gpt_oss.*sinks.*s_aux"),
    ("doge", {}, r"doge.*bias.*not boolean"),
    ("mamba", {}, r"'mamba' made 0 calls"),
    ("lfm2", {"layer_types": ["conv", "full_attention"]}, r"only 1 of the 2 layers.*'lfm2'.*hybrid"),
]


@pytest.mark.parametrize(("family", "keys", "reason"), UNSUPPORTED, ids=[case[0] for case in UNSUPPORTED])
def test_an_unsupported_family_is_named_and_left_alone(family, keys, reason, make_model, tokens):
    model, ids = make_model(family, **keys), tokens(1, 6)
    before = fingerprint(model, ids)
    with pytest.raises(ValueError, match=reason):
        sparsify(model)
    assert fingerprint(model, ids) == before


def test_training_mode_survives_a_refusal(make_model):
    model = make_model("gpt_oss", num_local_experts=4).train()
    model.model.layers[0].eval()
    flags = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match="sinks"):
        sparsify(model)
    assert [module.training for module in model.modules()] == flags


@pytest.mark.parametrize(
    ("gate", "options", "reason"),
    [
        ({"family": "nothing"}, {}, "unknown gate family 'nothing'.*logit"),
        ({"threshhold": 0.1}, {}, "unknown gate key.*threshhold"),
        ({"family": "contribution", "bias": 1.0}, {}, "bias of family 'contribution'; known keys:.*threshold"),
        ({}, {"backend": "flash"}, "unknown attention backend 'flash'.*reference"),
    ],
)
def test_a_wrong_argument_leaves_the_model_alone(gate, options, reason, make_model, tokens):
    model, ids = make_model("llama"), tokens(1, 6)
    before = fingerprint(model, ids)
    with pytest.raises(ValueError, match=reason):
        sparsify(model, gate, **options)
    assert fingerprint(model, ids) == before


def test_a_non_affine_family_runs_on_the_reference_only(make_model, tokens, own_family):
    own_family("test_minimum", lambda logits, log_normaliser: (logits - log_normaliser + 2).clamp_max(1.0))
    with pytest.raises(ValueError, match=r"test_minimum.*overrides forward"):
        sparsify(make_model("llama"), {"family": "test_minimum"}, backend="blockwise")
    model, ids = sparsify(make_model("llama"), {"family": "test_minimum"}), tokens(1, 9)
    pattern = reference_pattern(model, ids)
    assert torch.equal(pattern.is_open, pattern.weights.log() > -2)


def test_dropout_in_training_is_refused_by_a_named_backend(make_model, tokens):
    model = sparsify(make_model("gpt2", attn_pdrop=0.1), backend="blockwise").train()
    with pytest.raises(ValueError, match="'blockwise' does not support attention dropout"):
        model(tokens(1, 4))
    model.eval()(tokens(1, 4))


def test_twice_and_never(make_model, tokens):
    model, ids = make_model("llama"), tokens(1, 6)
    with pytest.raises(ValueError, match="no gates"):
        desparsify(model)
    gates = gates_of(sparsify(model, {"threshold": 0.2}))
    before = fingerprint(model, ids)
    with pytest.raises(ValueError, match=r"sparsified already.*desparsify"):
        sparsify(model)
    assert fingerprint(model, ids) == before
    assert all(a is b for a, b in zip(gates_of(model), gates, strict=True))
    desparsify(model)
    with pytest.raises(ValueError, match="no gates"):
        desparsify(model)
    sparsify(model)
    assert len(attention_modules(model)) == 2


def test_only_transformers_models():
    with pytest.raises(ValueError, match="expected a transformers model, got Linear"):
        sparsify(torch.nn.Linear(2, 2))


@pytest.fixture
def call(make_model):
    """call(mask, **keywords): the registered function, as a layer of a sparsified model calls it, on the last
    `queries` of 5 tokens."""
    module = attention_modules(sparsify(make_model("llama")))[0]
    q, k, v = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)

    def run(mask, queries=5, **keywords):
        return gated_attention_forward(module, q[:, :, -queries:], k, v, mask, scaling=0.3, **keywords)

    return run


def test_a_mask_that_may_carry_a_bias_is_refused(call):
    causal = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    bias = torch.zeros(1, 1, 5, 5).masked_fill(~causal, torch.finfo(torch.float32).min)
    for mask in (bias, causal.long()):
        with pytest.raises(ValueError, match="boolean attention mask"):
            call(mask)


def test_no_mask_means_causal(call):
    causal = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(call(None), call(causal), rtol=0, atol=0)
    # Fewer queries than keys are the last ones, as in decoding with a cache.
    torch.testing.assert_close(call(None, queries=2), call(causal[:, :, 3:], queries=2), rtol=0, atol=0)


def test_an_unknown_keyword_is_refused_unless_none(call, make_model, tokens):
    with pytest.raises(ValueError, match="'s_aux'"):
        call(None, s_aux=torch.zeros(4))
    with pytest.raises(ValueError, match="'position_bias'"):
        call(None, position_bias=0)
    torch.testing.assert_close(call(None, position_bias=None, s_aux=None), call(None), rtol=0, atol=0)
    model = sparsify(make_model("llama"))
    with pytest.raises(ValueError, match="'cu_seq_lens_q'"):
        model(tokens(1, 4), cu_seq_lens_q=torch.tensor([0, 4]))


def test_a_float_mask_from_the_caller_is_refused(make_model, tokens):
    model = sparsify(make_model("llama"))
    with pytest.raises(ValueError, match="boolean attention mask"):
        model(tokens(1, 4), attention_mask=torch.zeros(1, 1, 4, 4))
