"""Gated attention in plain torch, the oracle for every faster operator (arXiv 2512.05865, section 3).

    weights p_ij = softmax_j(s_ij)     gate A_ij     output o_i = sum_j A_ij p_ij v_j     edges E = sum sigmoid(z_ij)

Memory is O(T S) several times over, by design: each line is one equation.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_sparse.attention.backend import GatedAttention, edge_counts
from lit_sparse.attention.gates import Gate


def attention_logits(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch kv_head key dim"],
    *,
    scaling: float,
    softcap: float | None,
) -> Float[Tensor, "batch head query key"]:
    """Scaled (and soft-capped) query-key products in at least float32. Heads of a group share their key head."""
    groups = query.shape[1] // key.shape[1]
    logits = torch.matmul(query, key.repeat_interleave(groups, dim=1).transpose(-1, -2))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scaling
    return softcap * torch.tanh(logits / softcap) if softcap is not None else logits


def logistic_noise(like: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Standard logistic noise from the default generator (so activation checkpointing replays it)."""
    # Clamped away from 0 and 1, where the logit is infinite; float32 draws have a resolution of 2^-24.
    uniform = torch.rand(like.shape, device=like.device, dtype=torch.float32).clamp(2**-25, 1 - 2**-24)
    uniform = uniform.to(like.dtype)
    return -torch.logit(uniform)  # an edge is open when its uniform draw is below sigmoid(z)


def gated_attention(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch kv_head key dim"],
    value: Float[Tensor, "batch kv_head key value_dim"],
    mask: Bool[Tensor, "#batch 1 query key"],
    gate: Gate,
    *,
    scaling: float,
    softcap: float | None = None,
    dropout: float = 0.0,
    sample: bool = False,
) -> GatedAttention:
    """See `GatedAttention` for what is returned.

    Args:
        mask: True where a query may see a key. A row without any key gives zero output and no edges.
        sample: draw gates (training, straight-through gradient) instead of taking z > 0 (evaluation).
    """
    logits = attention_logits(query, key, scaling=scaling, softcap=softcap)
    logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    log_normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)
    weights = torch.exp(logits - log_normaliser) * mask

    gate_logits = gate(logits, log_normaliser)
    noisy = gate_logits + logistic_noise(gate_logits) if sample else gate_logits
    is_open = (noisy > 0) & mask
    gates = is_open.to(weights.dtype)
    if sample:
        soft = torch.sigmoid(noisy) * mask
        gates = gates + (soft - soft.detach())  # straight-through: forward hard, backward the concrete's slope
    expected = (torch.sigmoid(gate_logits) * mask).sum(dim=(-2, -1))

    weights = weights * gates
    if gate.config.normalisation == "open":
        # A row with nothing open has no mass to divide by: it attends to nothing, as under "all".
        mass = weights.sum(dim=-1, keepdim=True)
        weights = weights / torch.where(mass > 0, mass, 1.0)
    weights = torch.nn.functional.dropout(weights, p=dropout, training=dropout > 0.0)
    groups = query.shape[1] // key.shape[1]
    output = torch.matmul(weights.to(value.dtype), value.repeat_interleave(groups, dim=1))
    return GatedAttention(output.transpose(1, 2).contiguous(), edge_counts(expected, is_open, mask))
