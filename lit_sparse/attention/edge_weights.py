"""Attention of a layer as a matrix with the weight of every edge, differentiable. For short prompts."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lit_sparse.attention.gates import Gate
from lit_sparse.attention.masks import EdgeMask
from lit_sparse.attention.reference import attention_logits


class Passed(NamedTuple):
    """Factors of what one layer's edges pass: edge (i, j) of a head passes its weight times the key's value."""

    weights: Float[Tensor, "batch head query key"]
    values: Float[Tensor, "batch head key value_dim"]


def softmax_and_edge_weights(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch kv_head key dim"],
    value: Float[Tensor, "batch kv_head key value_dim"],
    mask: EdgeMask,
    gate: Gate,
    *,
    scaling: float,
    softcap: float | None = None,
) -> tuple[Float[Tensor, "batch head query key"], Float[Tensor, "batch head query key"]]:
    """p and w of every edge, by deterministic gates: the softmax over all keys that are allowed, and the factor w in
    o_i = sum_j w_ij v_j (with centered gates c + sum_j w_ij (v_j - c)), 0 at edges that are closed or not allowed.

    Both are differentiable in queries and keys through the softmax. The gates' decisions have no gradient.

    Args:
        value: the model's values, before any centering.
    """
    logits = attention_logits(query, key, scaling=scaling, softcap=softcap)
    allowed = mask.dense()
    logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
    log_normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)
    weights = torch.exp(logits - log_normaliser) * allowed
    if not gate.closable:
        return weights, weights
    with torch.no_grad():
        offset = gate.key_offset(gate.deviation(value))
        gate_logits = gate(logits, log_normaliser) if offset is None else gate(logits, log_normaliser, offset)
    softmax, weights = weights, weights * (gate_logits > 0)
    if gate.config.normalisation == "open":
        mass = weights.sum(dim=-1, keepdim=True)
        weights = weights / torch.where(mass > 0, mass, 1.0)
    return softmax, weights
