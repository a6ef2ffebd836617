"""Parts of a model's decoder layers, found by name. `Stack` checks them by reassembling every layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lit_sparse.attention import attention_modules

_ATTENTION_NORMS = ("input_layernorm", "ln_1", "self_attn_layer_norm")
_MLP_NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "final_layer_norm")
_OUTPUTS = ("o_proj", "c_proj", "dense", "out_proj")
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")

_identity = nn.Identity()


@dataclass(frozen=True)
class LayerParts:
    """One decoder layer: attention and MLP with the norms before and after them.

    parallel: True if the MLP reads the same residual stream as the attention, without the attention's output.
    """

    module: nn.Module
    attention: Any
    mlp: Callable[[Tensor], Any]
    before_attention: nn.Module
    after_attention: nn.Module
    before_mlp: nn.Module
    after_mlp: nn.Module
    parallel: bool

    @property
    def output(self) -> nn.Module:
        """The projection from the heads' outputs to the residual stream."""
        return _first(self.attention, _OUTPUTS)

    def output_weight(self) -> Float[Tensor, "model head_value"]:
        """That projection as a matrix, without its bias."""
        weight = self.output.weight
        return weight.T if isinstance(self.output, Conv1D) else weight  # type: ignore[return-value]

    def with_parallel(self, parallel: bool) -> "LayerParts":
        return LayerParts(**{**self.__dict__, "parallel": parallel})


@dataclass(frozen=True)
class Anatomy:
    """A sparsified model's layers in the order in which they run, and what comes after the last one."""

    layers: list[LayerParts]
    final_norm: nn.Module
    head: nn.Module
    softcap: float | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Anatomy":
        """Finds the parts of a sparsified model.

        Raises:
            ValueError: no MLP, attention output, single final norm or output head was found under a known name.
        """
        parents = {id(child): parent for parent in model.modules() for child in parent.children()}
        layers = [_layer(model, parents[id(attention)], attention) for attention in attention_modules(model)]
        inside = {id(module) for layer in layers for module in layer.module.modules()}
        norms = [
            module
            for name, module in model.named_modules()
            if name.rpartition(".")[2] in _FINAL_NORMS and id(module) not in inside
        ]
        head = model.get_output_embeddings()
        if len(norms) != 1 or head is None:
            raise ValueError(
                f"model family {model.config.model_type!r}: no single final norm and output head were found"
            )
        softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        return cls(layers, norms[0], head, softcap)

    def logits(self, residual: Float[Tensor, "*batch model"]) -> Float[Tensor, "*batch token"]:
        """Next-token logits from the residual stream after the last layer."""
        logits = self.head(self.final_norm(residual))
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def _layer(model: PreTrainedModel, layer: nn.Module, attention: nn.Module) -> LayerParts:
    family = model.config.model_type
    before = _first(layer, _ATTENTION_NORMS, _identity)
    after: Any = _identity
    after_mlp: Any = _identity
    if hasattr(layer, "post_feedforward_layernorm"):  # gemma: norms on both sides; olmo2: only after
        after, after_mlp = layer.post_attention_layernorm, layer.post_feedforward_layernorm
        before_mlp = _first(layer, _MLP_NORMS[:1], _identity)
    else:
        before_mlp = _first(layer, _MLP_NORMS, before)  # phi: one norm for both
    mlp: Any = _first(layer, ("mlp", "block_sparse_moe"), _identity)
    if mlp is _identity and hasattr(layer, "fc1"):
        mlp = nn.Sequential(layer.fc1, layer.activation_fn, layer.fc2)  # type: ignore[arg-type]
    if mlp is _identity or _first(attention, _OUTPUTS, _identity) is _identity:
        raise ValueError(f"model family {family!r}: no MLP or no attention output was found under a known name")
    return LayerParts(layer, attention, mlp, before, after, before_mlp, after_mlp, parallel=False)


def _first(parent: nn.Module, names: tuple[str, ...], default: nn.Module | None = None) -> nn.Module:
    for name in names:
        child = getattr(parent, name, None)
        if isinstance(child, nn.Module):
            return child
    assert default is not None
    return default
