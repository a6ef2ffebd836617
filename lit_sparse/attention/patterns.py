"""Attention patterns of a model, dense or sparse: the matrices that `output_attentions=True` promises."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_sparse.attention.bridge import attending, attention_modules, attention_problem, gated_attention_forward
from lit_sparse.attention.edge_weights import softmax_and_edge_weights
from lit_sparse.attention.interface import accumulation_dtype
from lit_sparse.common.modes import evaluating

_RECORDING = "lit_sparse_patterns"


@torch.no_grad()
def attention_patterns(
    model: nn.Module,
    input_ids: Int[Tensor, "batch query"],
    attention_mask: Int[Tensor, "batch query"] | None = None,
    *,
    gated: bool = True,
) -> tuple[Float[Tensor, "batch head query key"], ...]:
    """Attention weights of every layer, at evaluation, in one form for dense and sparse models.

    Of a sparse model these are the weights after the gates, exactly 0 at closed edges: the factor w of a key's value in
    a query's output, o_i = sum_j w_ij v_j (with centered gates of its deviation, o_i = c + sum_j w_ij (v_j - c)). Of a
    dense model they are the softmax weights. Rows and columns of padding are 0.

    `output_attentions=True` does not give these on a sparse model: it gives (B, H, 3) counts of edges (`edge_counts`).
    Memory is L B H T^2. Use `open_edges` for long inputs: it lists the open edges alone.

    Args:
        model: a causal language model of transformers, sparsified or not.
        attention_mask: 0 at padding, which may be on either side; None where there is none.
        gated: False gives a sparse model's softmax weights, before its gates. The forward pass is still the gated one.
            It makes no difference for a dense model.

    Raises:
        RuntimeError: inside `lit_sparse.edit`, which changes what edges pass.
        ValueError: a dense model of a family that keeps its attention weights to itself.
    """
    modules = attention_modules(model)
    if any(hasattr(module, "edge_edits") for module in modules):
        raise RuntimeError("patterns of a model that is being edited are not shown: leave lit_sparse.edit first")
    with evaluating(model):
        layers = (
            _sparse(model, input_ids, attention_mask, gated) if modules else _dense(model, input_ids, attention_mask)
        )
    if attention_mask is None:
        return tuple(layers)
    real = attention_mask.bool()
    both = (real[:, :, None] & real[:, None, :])[:, None]
    return tuple(weights * both for weights in layers)


def _sparse(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None, gated: bool) -> list[Tensor]:
    layers: list[Tensor] = []

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keywords: Any
    ) -> tuple[Tensor, Tensor]:
        mask, scaling = attention_problem(module, query, key, attention_mask, keywords)
        precise = accumulation_dtype(value.dtype)  # of the operators, on what they are given
        queries, keys = (tensor.to(value.dtype).to(precise) for tensor in (query, key))
        softmax, weights = softmax_and_edge_weights(
            queries, keys, value, mask, module.edge_gate, scaling=scaling, softcap=keywords.get("softcap")
        )
        layers.append(weights if gated else softmax)
        return gated_attention_forward(module, query, key, value, attention_mask, **keywords)

    with attending(model, _RECORDING, attend):
        model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return layers


def _dense(model: Any, input_ids: Tensor, attention_mask: Tensor | None) -> list[Tensor]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = base.config._attn_implementation
    base.set_attn_implementation("eager")  # the others never have the weights
    try:
        out = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, output_attentions=True)
    finally:
        base.set_attn_implementation(before)
    if not out.attentions or any(weights is None or weights.dim() != 4 for weights in out.attentions):
        raise ValueError(f"model family {base.config.model_type!r} does not give its attention weights")
    return list(out.attentions)
