"""Probe of a model: a forward pass that finds the modules that use transformers' attention interface.

The flags of the modelling code are not enough, because families that ignore the interface only log a warning and stay
dense. Instead, two tiny packed documents run through the model with a recording attention function.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lit_sparse.attention.masks import boolean_mask
from lit_sparse.common.modes import evaluating

_PROBE = "lit_sparse_probe"
_calls: list["AttentionCall"] = []


@dataclass(frozen=True)
class AttentionCall:
    """One attention layer as the model calls it."""

    module: nn.Module
    heads: int
    value_shape: tuple[int, int]  # key/value heads, dimension of a value
    keywords: tuple[str, ...]  # of arguments that are not None
    mask_separates_documents: bool
    mask_is_additive: bool
    device: torch.device


def probe_attention(model: PreTrainedModel) -> list[AttentionCall]:
    """The model's attention layers in the order in which they run. The model is left unchanged.

    Raises:
        ValueError: some or all of the model's attention does not use the attention interface.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"expected a transformers model, got {type(model).__name__}")
    family = model.config.model_type
    if not model._can_set_attn_implementation():
        raise ValueError(
            f"model family {family!r} does not go through transformers' attention interface (it computes attention "
            "itself, often with ALiBi biases), so it cannot be given gates; supported are families such as gpt2, "
            "llama, olmo, qwen, mistral, gemma, gpt_neox, opt and phi"
        )
    previous = model.config._attn_implementation
    verbosity = transformers_logging.get_verbosity()
    _calls.clear()
    try:
        transformers_logging.set_verbosity_error()  # "implementation changed" is noise here
        model.set_attn_implementation(_PROBE)
        device = _device(model)
        ids = torch.zeros(1, 4, dtype=torch.long, device=device)
        inputs = {"position_ids": torch.tensor([[0, 1, 0, 1]], device=device)}
        if device.type == "meta":  # no values to tell documents apart by
            inputs = {"attention_mask": torch.ones_like(ids)}
        with torch.no_grad(), evaluating(model):
            model(input_ids=ids, use_cache=False, **inputs)
        calls = list(_calls)
    finally:
        _calls.clear()
        model.set_attn_implementation(previous)
        transformers_logging.set_verbosity(verbosity)
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if not calls or len({id(call.module) for call in calls}) != len(calls):
        raise ValueError(
            f"model family {family!r} made {len(calls)} calls to the attention interface from distinct layers; gates "
            "need each attention layer to attend through it once"
        )
    if layers is not None and len(calls) != layers:
        raise ValueError(
            f"only {len(calls)} of the {layers} layers of model family {family!r} attend through the attention "
            "interface; lit_sparse does not support hybrid models"
        )
    return calls


def _device(model: PreTrainedModel) -> torch.device:
    """Where the model computes: accelerate brings parameters there that it keeps elsewhere, as on disk."""
    hooks = [getattr(module, "_hf_hook", None) for module in model.modules()]
    devices = [device for hook in hooks if (device := getattr(hook, "execution_device", None)) is not None]
    return torch.device(devices[0]) if devices else next(model.parameters()).device


def _record(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    keywords = tuple(name for name, argument in kwargs.items() if argument is not None)
    separates = attention_mask is not None and attention_mask.device.type != "meta"
    separates = separates and not bool(attention_mask[0, 0, 2, 0])  # type: ignore[index]
    additive = attention_mask is not None and attention_mask.dtype is not torch.bool
    shape = value.shape[1], value.shape[3]
    _calls.append(AttentionCall(module, query.shape[1], shape, keywords, separates, additive, query.device))
    batch, heads, rows, _ = query.shape
    return value.new_zeros(batch, rows, heads, value.shape[-1]), None


AttentionInterface.register(_PROBE, _record)
AttentionMaskInterface.register(_PROBE, boolean_mask)
