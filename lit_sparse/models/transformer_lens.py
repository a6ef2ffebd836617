"""Sparse models in TransformerLens (extra `interop`).

TransformerLens' own way to wrap a model, `TransformerBridge.boot_transformers`, computes attention anew from the
projections, without gates; the first forward pass then ends in `DenseAttentionError`. `transformer_bridge` keeps the
model's attention instead and puts hooks around it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_sparse.attention import attention_modules
from lit_sparse.attention.bridge import IMPLEMENTATION, set_implementation

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def transformer_bridge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> "TransformerBridge":
    """TransformerLens' bridge around a sparse model, in place: modules of the model are wrapped, its weights stay.

    Logits, caches, hooks and generation are those of the sparse model. `blocks.L.attn.hook_z` is what its heads' open
    edges write, before the output projection; the attention scores and the pattern have no hooks, since operators never
    hold them. `lit_sparse.attention_patterns` gives the pattern. TransformerLens refuses options that take attention
    apart (`set_use_attn_result`, `set_use_split_qkv_input`, `set_use_attn_in`).

    Args:
        tokenizer: for text as input.

    Raises:
        ValueError: the model has no gates, or TransformerLens does not know its family. From
            `enable_compatibility_mode`: weight processing would change what the gates read, as it does where values
            have biases, norms have some, or one projection makes queries, keys and values. `no_processing=True` works.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    if not attention_modules(model):
        raise ValueError("this model has no gates; TransformerBridge.boot_transformers wraps dense models")
    bridge = build_bridge_from_module(
        model,
        type(model).__name__,
        hf_config=model.config,
        tokenizer=tokenizer,
        post_adapter_hook=lambda adapter: _keep_attention(adapter, attention_modules(model)[0]),
    )
    set_implementation(model, IMPLEMENTATION)  # some adapters set another one
    return bridge


def _keep_attention(adapter: Any, attention: Any) -> None:
    """Changes an architecture's adapter so that its bridge calls the model's attention modules as they are."""
    from transformer_lens.model_bridge.generalized_components import AttentionBridge

    block = adapter.components["blocks"]
    own = block.submodules["attn"]
    # Of a fused projection TransformerLens makes queries', keys' and values' as modules that the model does not have.
    parts = {name: part for name, part in own.submodules.items() if hasattr(attention, part.name)}
    block.submodules["attn"] = AttentionBridge(
        name=own.name,
        config=adapter.cfg,
        submodules=parts,
        maintain_native_attention=True,
        fused_qkv="q" not in parts,
    )
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]] = adapter.preprocess_weights

    def preprocess_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        biased = adapter.cfg.normalization_type != "RMS" or any(name.endswith("attn.v.bias") for name in state)
        if biased or "q" not in parts:
            raise ValueError(
                "TransformerLens' weight processing would change the values that this sparse model's gates read: call "
                "enable_compatibility_mode(no_processing=True)"
            )
        return prepare(state)

    adapter.preprocess_weights = preprocess_weights
