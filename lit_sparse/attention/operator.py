"""Gated attention as one differentiable PyTorch operator, `torch.ops.lit_sparse.gated_attention`.

The operator is registered with torch.library (fake kernels and autograd), so for torch.compile it is one opaque call. A
pair of functions computes it, `forward` and `backward`, in the module of a backend: `blockwise` (any device) or `gpu`
(Triton). Both recompute instead of storing. Between forward and backward, only the inputs, the output and two numbers
per row are kept.

With g_ij = do_i . v_j, dE the gradient of the expected edges, u the noise, e = sigmoid(z), A the open gates and

    delta_i = do_i . o_i
    all keys normalise:    G_ij = g_ij                     r_i = delta_i    w_ij = A_ij p_ij
    open keys normalise:   G_ij = (g_ij - delta_i) / m_i   r_i = 0          w_ij = A_ij p_ij / m_i
    m_i   = sum_j A_ij p_ij                                    (1 where nothing is open)
    t_ij  = sigmoid(z_ij - logit u_ij)                         (the binary concrete relaxation of the gate)
    c_ij  = sharpness * (p_ij G_ij t_ij (1 - t_ij) + dE e_ij (1 - e_ij))
    ds_ij = p_ij (A_ij G_ij - r_i) + c_ij - [normalised gate] p_ij sum_k c_ik
    d cutoff = - sum_ij c_ij,   d offset_j = sum_i c_ij,   dq = scaling ds k,   dk = scaling ds^T q,   dv = w^T do

(arXiv 2512.05865, section 3, and SPARTAN, arXiv 2411.06890, for the straight-through gate). A soft cap multiplies ds by
its slope 1 - (s/cap)^2.
"""

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_sparse.attention.gates import Gate
from lit_sparse.attention.interface import Formula, GatedAttention, accumulation_dtype, formula_of
from lit_sparse.attention.masks import EdgeMask


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
    backend: str,
) -> GatedAttention:
    """Gated attention as in `reference.gated_attention`, for affine gates without dropout."""
    formula, cutoff, offset = formula_of(gate, scaling, softcap), gate.form().cutoff, gate.key_offset(value)
    differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value, cutoff))
    if differentiated or torch.compiler.is_compiling():
        output, edges, _, _ = torch.ops.lit_sparse.gated_attention(
            query, key, value, mask.start, mask.stop, mask.holes, cutoff, offset, seeds, *formula, backend
        )
    else:  # the dispatcher takes longer than decoding a token does
        output, edges, _, _ = _backend(backend).forward(query, key, value, mask, cutoff, offset, seeds, formula)
    return GatedAttention(output, edges)


def _backend(name: str) -> ModuleType:
    if name == "triton":
        from lit_sparse.attention import gpu

        return gpu
    from lit_sparse.attention import blockwise

    return blockwise


@torch.library.custom_op("lit_sparse::gated_attention", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    start: Tensor,
    stop: Tensor,
    holes: Tensor | None,
    cutoff: Tensor,
    offset: Tensor | None,
    seeds: Tensor | None,
    sharpness: Tensor,
    normalised: bool,
    renormalise: bool,
    scaling: float,
    softcap: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    formula = Formula(sharpness, normalised, renormalise, scaling, softcap)
    mask = EdgeMask(start, stop, key.shape[2], holes)
    return tuple(_backend(backend).forward(query, key, value, mask, cutoff, offset, seeds, formula))


@_forward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    start: Tensor,
    stop: Tensor,
    holes: Tensor | None,
    cutoff: Tensor,
    offset: Tensor | None,
    seeds: Tensor | None,
    sharpness: Tensor,
    normalised: bool,
    renormalise: bool,
    scaling: float,
    softcap: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, rows, _ = query.shape
    exact = accumulation_dtype(query.dtype)
    return (
        value.new_empty(batch, rows, heads, value.shape[-1]),
        query.new_empty(batch, heads, 3, dtype=exact),
        query.new_empty(batch, heads, rows, dtype=exact),
        query.new_empty(batch, heads, rows if renormalise else 0, dtype=exact),
    )


@torch.library.custom_op("lit_sparse::gated_attention_backward", mutates_args=())
def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    start: Tensor,
    stop: Tensor,
    holes: Tensor | None,
    cutoff: Tensor,
    offset: Tensor | None,
    seeds: Tensor | None,
    sharpness: Tensor,
    normalised: bool,
    renormalise: bool,
    scaling: float,
    softcap: float,
    backend: str,
    output: Tensor,
    lse: Tensor,
    mass: Tensor,
    d_output: Tensor,
    d_expected: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    formula = Formula(sharpness, normalised, renormalise, scaling, softcap)
    mask = EdgeMask(start, stop, key.shape[2], holes)
    gradients = _backend(backend).backward(
        query, key, value, mask, cutoff, offset, seeds, formula, output, lse, mass, d_output, d_expected
    )
    # An operator returns tensors only: an empty one stands for no offset.
    return *gradients[:4], cutoff.new_empty(0) if gradients.offset is None else gradients.offset


@_backward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    start: Tensor,
    stop: Tensor,
    holes: Tensor | None,
    cutoff: Tensor,
    offset: Tensor | None,
    *rest: Tensor | float | str | None,
) -> tuple[Tensor, ...]:
    offset = cutoff.new_empty(0) if offset is None else offset
    return tuple(x.new_empty(x.shape) for x in (query, key, value, cutoff, offset))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    tensors, ctx.rest = inputs[:10], inputs[10:]
    ctx.save_for_backward(*tensors, output[0], output[2], output[3])


def _differentiate(ctx: Any, d_output: Tensor, d_edges: Tensor, d_lse: Tensor, d_mass: Tensor) -> tuple[Any, ...]:
    *tensors, output, lse, mass = ctx.saved_tensors
    d_expected = d_edges[..., 0].to(lse.dtype).contiguous()
    gradients = torch.ops.lit_sparse.gated_attention_backward(
        *tensors, *ctx.rest, output, lse, mass, d_output.to(output.dtype).contiguous(), d_expected
    )
    d_query, d_key, d_value, d_cutoff, d_offset = gradients
    d_offset = None if tensors[7] is None else d_offset
    return d_query, d_key, d_value, None, None, None, d_cutoff, d_offset, *[None] * (2 + len(ctx.rest))


_forward.register_autograd(_differentiate, setup_context=_setup_context)
