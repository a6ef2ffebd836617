"""A prompt's forward pass whose attention weights are given instead of computed, the rest of the model as it is.

Gates and softmax are functions of queries and keys, so a model's answer depends on its values in two ways: through
what the open edges move (o_i = sum_j w_ij v_j), and through what decides w. With w held at what it was, only the first
is left; closing an edge then means w_ij = 0, and no other edge's weight changes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_sparse.anatomy.stack import Stack

Weights = Sequence[Float[Tensor, "#batch head query key"]]


class Frozen:
    """A prompt in a model taken apart.

    Attributes:
        weights: per layer (1, H, T, T): the factor w_ij of key j's value in query i's output, 0 at closed edges.
        allowed: edges that the masks allow, over all layers and heads.
        full: logits (V,) of the next token.
    """

    @torch.no_grad()
    def __init__(self, stack: Stack, ids: Int[Tensor, "1 time"]):
        self.stack = stack
        self.embedding = residual = stack.embed(ids)
        self.weights: list[Tensor] = []
        self.allowed = 0
        size = ids.shape[1]
        for layer in range(len(stack.anatomy.layers)):
            projected = stack.project(layer, residual)
            # Not by attending to unit vectors as values: gates on contributions look at the values themselves.
            listed = stack.open_edges(layer, projected)
            weight = residual.new_zeros(1, projected.query.shape[1], size, size)
            self.weights.append(weight.index_put(tuple(listed.indices), listed.weights.to(weight.dtype)))
            self.allowed += stack.allowed_edges(layer, projected)
            residual = stack.layer(layer, residual)
        self.full = stack.logits(residual)[0]

    def logits(self, weights: Weights) -> Float[Tensor, "batch token"]:
        """Next-token logits with other attention weights, a batch of them; differentiable in them."""
        batch = max(len(layer) for layer in weights)
        residual = self.embedding.expand(batch, -1, -1)
        for layer, weight in enumerate(weights):
            parts = self.stack.anatomy.layers[layer]
            gate = parts.attention.edge_gate
            value = gate.deviation(self.stack.project(layer, residual).value)
            value = value.repeat_interleave(weight.shape[1] // value.shape[1], dim=1)
            heads = gate.restored(torch.matmul(weight.to(value.dtype), value).transpose(1, 2))
            attention = parts.after_attention(parts.output(heads.flatten(2)))
            residual = self.stack.finish_layer(layer, residual, attention)
        return self.stack.logits(residual)
