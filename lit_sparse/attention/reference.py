"""Gated attention in plain torch, the oracle for every faster operator (arXiv 2512.05865, section 3).

    weights p_ij = softmax_j(s_ij)     gate A_ij     output o_i = sum_j A_ij p_ij v_j     edges E = sum sigmoid(z_ij)

Memory is O(T S) several times over, on purpose, so that each line is one equation.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_sparse.attention import noise
from lit_sparse.attention.gates import Gate
from lit_sparse.attention.interface import GatedAttention, three_counts
from lit_sparse.attention.masks import EdgeMask


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


def gated_attention(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch kv_head key dim"],
    value: Float[Tensor, "batch kv_head key value_dim"],
    mask: EdgeMask,
    gate: Gate,
    *,
    scaling: float,
    softcap: float | None = None,
    dropout: float = 0.0,
    seeds: Int[Tensor, " batch"] | None = None,
) -> GatedAttention:
    """Gated attention in plain torch; see `GatedAttention` for the result.

    Args:
        mask: the allowed edges. A row without any key gives zero output and no edges.
        seeds: seeds that draw the gates (training, straight-through gradient); None takes z > 0 (evaluation).
    """
    logits = attention_logits(query, key, scaling=scaling, softcap=softcap)
    allowed = mask.dense()
    logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
    log_normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)
    weights = torch.exp(logits - log_normaliser) * allowed

    offset = gate.key_offset(value)
    gate_logits = gate(logits, log_normaliser) if offset is None else gate(logits, log_normaliser, offset)
    noisy = gate_logits
    if seeds is not None:
        uniform = noise.uniform(seeds, query.shape[1], (0, query.shape[2]), (0, key.shape[2]))
        noisy = gate_logits - torch.logit(uniform.to(gate_logits.dtype))
    is_open = (noisy > 0) & allowed
    gates = is_open.to(weights.dtype)
    if seeds is not None:
        soft = torch.sigmoid(noisy) * allowed
        gates = gates + (soft - soft.detach())  # straight-through: forward hard, backward the concrete's slope
    expected = (torch.sigmoid(gate_logits) * allowed).sum(dim=(-2, -1))

    weights = weights * gates
    if gate.config.normalisation == "open":
        # A row without open edges has no mass to divide by. It attends to nothing, as under "all".
        mass = weights.sum(dim=-1, keepdim=True)
        weights = weights / torch.where(mass > 0, mass, 1.0)
    weights = torch.nn.functional.dropout(weights, p=dropout, training=dropout > 0.0)
    groups = query.shape[1] // key.shape[1]
    output = torch.matmul(weights.to(value.dtype), value.repeat_interleave(groups, dim=1))
    return GatedAttention(output.transpose(1, 2).contiguous(), three_counts(expected, is_open, mask))
