"""Gated attention with a hand-written backward (DESIGN gradient), for gates of the affine form.

Saves the weights p, the gate probabilities e = sigmoid(z) and the uniform draws u instead of autograd's ten
T x S tensors, and spends one exponential and one sigmoid per pair: a gate is open when u < e, and with

    t = sigmoid(z - logit u) = (1 - u) e / ((1 - u) e + u (1 - e))

the straight-through slope t (1 - t) needs no further one.

With g_ij = do_i . v_j, delta_i = do_i . o_i and dE the gradient of the expected edges,

    c_ij  = sharpness * (p_ij g_ij t_ij (1 - t_ij) + dE e_ij (1 - e_ij))          (gradient through the gate's score)
    ds_ij = p_ij (A_ij g_ij - delta_i) + c_ij - [normalised] p_ij sum_k c_ik
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_sparse.attention.backend import GatedAttention, edge_counts
from lit_sparse.attention.gates import Gate


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
    """Same contract as `reference.gated_attention`, for affine gates normalised over all keys."""
    form = gate.form()
    output, edges = _GatedAttention.apply(
        query, key, value, mask, form.cutoff, form.sharpness, form.normalised, scaling, sample
    )
    return GatedAttention(output.transpose(1, 2).contiguous(), edges)


def _grouped(x: Float[Tensor, "batch head length dim"], kv_heads: int) -> Float[Tensor, "batch kv rows dim"]:
    """(B, H, T, D) -> (B, G, H/G*T, D): the queries of a group side by side, so k and v are never repeated."""
    batch, heads, length, dim = x.shape
    return x.reshape(batch, kv_heads, heads // kv_heads * length, dim)


class _GatedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, mask, cutoff, sharpness, normalised, scaling, sample):
        batch, heads, rows, _ = query.shape
        kv_heads, keys = key.shape[1], key.shape[2]
        accumulate = torch.promote_types(query.dtype, torch.float32)
        logits = torch.matmul(_grouped(query, kv_heads), key.transpose(-1, -2))
        logits = logits.view(batch, heads, rows, keys).to(accumulate).mul_(scaling)
        logits.masked_fill_(~mask, -torch.inf)
        normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)
        # A row without any key: everything below becomes exp(-inf) = 0.
        normaliser.masked_fill_(normaliser == -torch.inf, torch.inf)
        logits.sub_(normaliser)
        weights = torch.exp(logits)
        cutoff_ = cutoff.to(accumulate).view(-1, 1, 1)
        shift = cutoff_ if normalised else cutoff_ - normaliser.clamp_max(torch.finfo(accumulate).max)
        opened = torch.sigmoid_(logits.sub_(shift).mul_(sharpness))
        if sample:
            uniform = torch.rand(opened.shape, device=opened.device, dtype=torch.float32)
            gates = uniform < opened
        else:
            uniform = None
            gates = opened > 0.5
        # exp(-inf) gates are closed: e = 0, and a draw of exactly 0 is not below 0.
        gated = weights * gates
        output = torch.matmul(_grouped(gated.to(value.dtype), kv_heads), value)
        output = output.view(batch, heads, rows, value.shape[-1])
        ctx.save_for_backward(query, key, value, cutoff, output, weights, opened, uniform, gates)
        ctx.sharpness, ctx.normalised, ctx.scaling = sharpness, normalised, scaling
        return output, edge_counts(opened.sum(dim=(-2, -1)), gates, mask)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_output, d_edges):
        query, key, value, cutoff, output, weights, opened, uniform, gates = ctx.saved_tensors
        batch, heads, rows, _ = query.shape
        kv_heads, keys = key.shape[1], key.shape[2]
        d_output = d_output.to(value.dtype)
        d_rows = _grouped(d_output, kv_heads)

        gated = _grouped((weights * gates).to(value.dtype), kv_heads)
        d_value = torch.matmul(gated.transpose(-1, -2), d_rows)

        g = torch.matmul(d_rows, value.transpose(-1, -2)).view(batch, heads, rows, keys).to(weights.dtype)
        delta = (d_output.to(weights.dtype) * output).sum(dim=-1, keepdim=True)
        g.mul_(weights)  # p g
        closed = 1 - opened
        slope = opened * closed
        c = slope * d_edges[..., 0].to(weights.dtype)[..., None, None]
        if uniform is not None:
            # t (1 - t) = x y / (x + y)^2 with x = (1 - u) e, y = u (1 - e); both vanish only where t is constant.
            other = 1 - uniform
            total = opened.mul(other).addcmul_(uniform, closed)
            slope.mul_(uniform).mul_(other).div_(total.square_().clamp_min_(1e-30))
            c.addcmul_(slope, g)
        c.mul_(ctx.sharpness)
        d_cutoff = -c.sum(dim=(0, 2, 3)).to(cutoff.dtype)

        row = delta + c.sum(dim=-1, keepdim=True) if ctx.normalised else delta
        d_logits = g.mul_(gates).addcmul_(weights, row, value=-1).add_(c).mul_(ctx.scaling).to(query.dtype)
        d_logits = _grouped(d_logits, kv_heads)
        d_query = torch.matmul(d_logits, key).view(query.shape)
        d_key = torch.matmul(d_logits.transpose(-1, -2), _grouped(query, kv_heads))
        return d_query, d_key, d_value, None, d_cutoff, None, None, None, None
