"""Tiny random models of many families, with weights large enough that attention matters to the logits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lit_sparse.attention import blockwise, native
from lit_sparse.attention.backend import AttentionOperator, Backend, Case, resolve
from lit_sparse.attention.gates import GateConfig, build_gate

# Every spelling of "small" that a family may use; a configuration ignores the others'.
_SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64, "head_dim": 8, "n_embd": 32, "n_layer": 2, "n_head": 4,
    "n_positions": 64, "ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_WINDOW = {"sliding_window": 3}
_ALTERNATING = _WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
_OWN: dict[str, dict[str, object]] = {
    "mistral": _WINDOW,
    "mixtral": _WINDOW | {"num_local_experts": 4},
    "phi3": _WINDOW,
    "qwen2": _ALTERNATING | {"use_sliding_window": True},
    "qwen3": _ALTERNATING | {"use_sliding_window": True},
    "gemma2": _ALTERNATING,
    "gemma3_text": _ALTERNATING,
    "phi": {"partial_rotary_factor": 0.5},
    # Multi-head latent attention: keys of 8 + 4 dimensions, values of 6.
    "deepseek_v3": {
        "head_dim": 4, "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4, "v_head_dim": 6, "moe_intermediate_size": 16, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    },
}  # fmt: skip


def _make_model(family: str, seed: int = 0, **keys: object) -> PreTrainedModel:
    torch.manual_seed(seed)
    keys = {name: key for name, key in (_SMALL | _OWN.get(family, {}) | keys).items() if key is not None}
    config = AutoConfig.for_model(family, **keys)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)  # the usual 0.02 leaves attention uniform and the logits deaf to it
    return model


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """make_model(family, seed=0, **config keys) -> a random model of 2 layers and 4 heads in evaluation mode."""
    return _make_model


@pytest.fixture
def tokens() -> Callable[..., Tensor]:
    """tokens(batch, length, seed=0) -> ids without the special ones."""

    def draw(batch: int, length: int, seed: int = 0) -> Tensor:
        return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture(params=["reference", "blockwise", "blockwise in C"])
def operator(request, monkeypatch) -> AttentionOperator:
    """Every implementation that a machine without a GPU has. In float64 the C kernels leave the work to torch's."""
    return _make_operator(request.param, monkeypatch)


@pytest.fixture(params=["blockwise", "blockwise in C"])
def fast_operator(request, monkeypatch) -> AttentionOperator:
    return _make_operator(request.param, monkeypatch)


def _make_operator(name: str, monkeypatch) -> AttentionOperator:
    if name == "blockwise in C":
        if native.library() is None:
            pytest.skip("no C compiler on this machine")
    elif name == "blockwise":
        monkeypatch.setattr(blockwise.native, "library", lambda: None)
    backend = Backend(name.split()[0])
    return resolve(backend, Case(build_gate(GateConfig(), 1)))
