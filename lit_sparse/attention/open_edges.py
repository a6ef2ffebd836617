"""Open edges of a sparse model's attention, as a list and never as T x T matrices. Graphs are made of them."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_sparse.attention import blockwise
from lit_sparse.attention.backends import unsupported
from lit_sparse.attention.bridge import (
    attending,
    attention_modules,
    attention_problem,
    gated_attention_forward,
)
from lit_sparse.attention.gates import Gate
from lit_sparse.attention.interface import Backend, Case, formula_of
from lit_sparse.attention.masks import EdgeMask
from lit_sparse.common.modes import evaluating

_RECORDING = "lit_sparse_open_edges"


class OpenEdges(NamedTuple):
    """One layer's open edges, ordered by sample, head, query and key.

    indices: sample, head, query and key of each edge.
    weights: the factor w of the key's value in the query's output, o_i = sum_j w_ij v_j (with centered gates, of
        its deviation: o_i = c + sum_j w_ij (v_j - c)); float32.
    """

    indices: Int[Tensor, "4 edge"]
    weights: Float[Tensor, " edge"]


@torch.no_grad()
def layer_open_edges(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch kv_head key dim"],
    value: Float[Tensor, "batch kv_head key value_dim"],
    mask: EdgeMask,
    gate: Gate,
    *,
    scaling: float,
    softcap: float | None = None,
) -> OpenEdges:
    """The edges that deterministic gates leave open, found one block of queries at a time, in O(T + S + edges) memory.

    `value` holds the model's values before any centering. Edges whose weight underflows to zero are left out.

    Raises:
        ValueError: the gate family does not have the affine form.
    """
    if reason := unsupported(Backend.BLOCKWISE, Case(gate)):
        raise ValueError(f"open edges cannot be listed for {reason}")
    formula = formula_of(gate, scaling, softcap)
    indices, weights = [torch.empty(4, 0, dtype=torch.int64, device=query.device)], [query.new_empty(0).float()]
    group, kv_heads = query.shape[1] // key.shape[1], key.shape[1]
    offset = gate.key_offset(gate.deviation(value))
    for tile, scores in blockwise.gated_weights(query, key, mask, gate.form().cutoff, offset, formula):
        head, row, column = scores.nonzero(as_tuple=True)
        weights.append(scores[head, row, column].float())
        key_head = head + tile.heads.start
        place = [key_head // kv_heads, key_head % kv_heads * group + row % group]
        indices.append(torch.stack([*place, tile.queries.start + row // group, tile.keys.start + column]))
    edges, factors = torch.cat(indices, dim=1), torch.cat(weights)
    order = torch.arange(len(factors), device=factors.device)
    for axis in (3, 2, 1, 0):  # sorting is stable, so the last axis decides
        order = order[edges[axis, order].argsort(stable=True)]
    return OpenEdges(edges[:, order], factors[order])


@torch.no_grad()
def open_edges(model: nn.Module, input_ids: Int[Tensor, "batch query"], **inputs: Any) -> list[OpenEdges]:
    """Open edges of every layer on some inputs, at evaluation. `inputs` go to the model (attention_mask, ...).

    Raises:
        ValueError: the model has no gates, or its gates do not have the affine form.
    """
    modules = attention_modules(model)
    if not modules:
        raise ValueError(
            "this model has no gates: call lit_sparse.sparsify(model) or lit_sparse.from_pretrained(name) first"
        )
    layers: list[OpenEdges] = []

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keys: Any
    ) -> tuple[Tensor, Tensor]:
        mask, scaling = attention_problem(module, query, key, attention_mask, keys)
        gate, softcap = module.edge_gate, keys.get("softcap")
        layers.append(layer_open_edges(query, key.to(query.dtype), value, mask, gate, scaling=scaling, softcap=softcap))
        return gated_attention_forward(module, query, key, value, attention_mask, **keys)

    with evaluating(model), attending(model, _RECORDING, attend):
        model(input_ids=input_ids, use_cache=False, **inputs)
    return layers
