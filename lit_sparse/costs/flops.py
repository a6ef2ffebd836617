"""Floating-point operations per token of a training step.

For each token, with N weights in matrix products, t of them trained, L layers, H heads, head dimension Q, length T
(PaLM, arXiv 2204.02311, appendix B: 6 N + 12 L H Q T for full training), causality not subtracted, as there:

    student forward       2 N + 4 L H Q T
    student backward      2 N + 2 t + 8 L H Q T      gradients of activations, and of the weights that learn
    teacher forward       2 N + 4 L H Q T            the base model's logits
    recomputed            2 N + 4 L H Q T            with activation checkpointing; no model FLOPs, but time
    recomputed scores     2 L H Q T                  by gated attention's backward pass, like flash attention's
"""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class FlopsPerToken:
    """Operations per token of each part of a training step."""

    forward: float
    backward: float
    teacher: float
    recomputed: float

    @property
    def model(self) -> float:
        """Operations that the method needs in any implementation: the numerator of model-FLOP utilisation."""
        return self.forward + self.backward + self.teacher

    @property
    def hardware(self) -> float:
        """Operations that are computed, recomputation included."""
        return self.model + self.recomputed


def flops_per_token(
    weights: float,
    trained: float,
    attention_width: float,
    length: int,
    *,
    teacher_weights: float = 0.0,
    checkpointing: bool = False,
) -> FlopsPerToken:
    """Operations per token of a training step.

    Args:
        weights, trained: number of weights in matrix products of the trained model, and of those that learn.
        attention_width: L H Q, or the sum of H Q over layers where they differ.
        length: T.
        teacher_weights: number of weights in matrix products of the base model; 0 if no base model runs.
    """
    attention = 4 * attention_width * length
    forward = 2 * weights + attention
    return FlopsPerToken(
        forward=forward,
        backward=2 * weights + 2 * trained + 2 * attention,
        teacher=2 * teacher_weights + attention if teacher_weights else 0.0,
        recomputed=attention / 2 + (forward if checkpointing else 0.0),
    )


def matmul_weights(model: nn.Module) -> tuple[float, float]:
    """Number of weights that a token is multiplied with, and of those that are trained.

    Embedding tables count only if they are tied to the output. Of experts, as many count as a token is routed to.
    """
    config: Any = model.config
    text = config.get_text_config()
    head = model.get_output_embeddings()  # type: ignore[operator]
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    tables -= set() if head is None else {id(head.weight)}
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
    routed = getattr(text, "num_experts_per_tok", None)
    total = trained = 0.0
    for name, parameter in model.named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves empty tensors behind
        if id(parameter) in tables or len(shape) < 2:
            continue
        size = float(shape.numel())
        if ".experts." in name and experts and routed:
            size *= routed / experts
        total += size
        trained += size if parameter.requires_grad else 0.0
    return total, trained


def flops_of_model(model: nn.Module, length: int, *, teacher: bool, checkpointing: bool = False) -> FlopsPerToken:
    """Operations per token of a transformers model as it is trained here. Adapters count for the student only.

    Args:
        teacher: True if the base model's logits are computed too, by a copy or by the model without its adapters.
    """
    text: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    weights, trained = matmul_weights(model)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    base = weights - _adapters(model)
    return flops_per_token(
        weights,
        trained,
        text.num_hidden_layers * text.num_attention_heads * head_dim,
        length,
        teacher_weights=base if teacher else 0.0,
        checkpointing=checkpointing,
    )


def _adapters(model: nn.Module) -> float:
    return float(
        sum(getattr(p, "ds_shape", p.shape).numel() for name, p in model.named_parameters() if ".lora_" in name)
    )
