"""Edges of a sparse model: counts per layer and head, and the full pattern of one short input."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_sparse.attention.bridge import attention_modules
from lit_sparse.attention.interface import Backend
from lit_sparse.common.modes import evaluating


class EdgeCounts(NamedTuple):
    """Edges summed over the batch, (L, H) each: expected open (differentiable), open in this pass, allowed."""

    expected: Float[Tensor, "layer head"]
    opened: Float[Tensor, "layer head"]
    allowed: Float[Tensor, "layer head"]


def edge_counts(attentions: Sequence[Tensor]) -> EdgeCounts:
    """Edge counts from `model(..., output_attentions=True).attentions` of a sparsified model. Layers with fewer heads
    than others are padded with heads that are allowed no edge."""
    per_layer = [layer.float().sum(dim=0) for layer in attentions]
    counts = nn.utils.rnn.pad_sequence(per_layer, batch_first=True)
    return EdgeCounts(*counts.unbind(dim=-1))


class ReferencePattern(NamedTuple):
    """Attention of one input, (L, H, T, T): softmax weights over all allowed keys, and the mask of open edges."""

    weights: Float[Tensor, "layer head query key"]
    is_open: Bool[Tensor, "layer head query key"]


@torch.no_grad()
def reference_pattern(model: nn.Module, input_ids: Int[Tensor, "1 query"]) -> ReferencePattern:
    """Every attention weight and gate of one sequence at evaluation, by the reference operator.

    `attention_patterns` gives the same weights by any operator. Memory is L H T^2, so inputs must be short.

    Raises:
        RuntimeError: inside `lit_sparse.edit`.
    """
    modules = attention_modules(model)
    if any(hasattr(module, "edge_edits") for module in modules):
        raise RuntimeError("this model is being edited and has no pattern of its own: leave lit_sparse.edit first")
    seen: list[tuple[Tensor, Tensor]] = []

    def read(gate: nn.Module, inputs: tuple[Tensor, ...], gate_logits: Tensor) -> None:
        logits, log_normaliser = inputs[:2]
        allowed = logits > torch.finfo(logits.dtype).min
        weights = torch.exp(logits - log_normaliser) * allowed
        seen.append((weights[0].float().cpu(), ((gate_logits > 0) & allowed)[0].cpu()))

    with ExitStack() as stack:
        for module in modules:
            # Only the reference operator calls the gate as a module, where a hook can see pairs.
            stack.callback(setattr, module, "edge_backend", module.edge_backend)
            module.edge_backend = Backend.REFERENCE
            stack.callback(module.edge_gate.register_forward_hook(read).remove)
        stack.enter_context(evaluating(model))
        model(input_ids=input_ids, use_cache=False)
    weights, is_open = zip(*seen, strict=True)
    return ReferencePattern(torch.stack(weights), torch.stack(is_open))
