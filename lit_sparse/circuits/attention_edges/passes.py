"""Forward passes of some prompts with attention edges switched off, one by one: the real ablations.

An edge (layer, head, query, key) passes w_ij u_j into its head's output, u_j being the key's value (less the gate's
center where it has one). Of every edge a switch a_ij says whether it is kept:

    o_i = c + sum_j a_ij w_ij u_j + (what the others pass)

    zero        nothing
    mean        sum_j (1 - a_ij) w_ij mean        `mean` of the head: what it passes per unit of weight (`means`)
    corrupted   sum_j (1 - a_ij) w'_ij u'_j       as on the corrupted prompt

In a dense model weights sum to one, so that a head without edges writes its mean output under `mean`. Weights and gates
are computed anew from what queries and keys have become, unless they are frozen at those of the whole model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_sparse.anatomy.stack import Projected, Stack

Off = Literal["zero", "mean", "corrupted"]
Means = Sequence[Float[Tensor, "head value_dim"]]
Switches = Sequence[Float[Tensor, "sample #batch head query key"] | None]


@dataclass(frozen=True)
class Recorded:
    """The whole model on some prompts: per layer the residual stream before it, the edges' weights and values."""

    residuals: list[Float[Tensor, "batch time model"]]
    weights: list[Float[Tensor, "batch head query key"]]
    values: list[Float[Tensor, "batch head key value_dim"]]
    logits: Float[Tensor, "batch token"]


class Passes:
    """Prompts of one length in a model taken apart.

    Args:
        ids: the prompts, without padding.
        means: of `means`; needed for `mean`.
        corrupted: prompts of the same length; needed for `corrupted`.

    Attributes:
        full: the whole model on the prompts.
        open: per layer, the edges that pass anything: in a dense model all that causality allows. With corrupted
            prompts, those that are open on either.
    """

    @torch.no_grad()
    def __init__(
        self,
        stack: Stack,
        ids: Int[Tensor, "batch time"],
        means: Means | None = None,
        corrupted: Int[Tensor, "batch time"] | None = None,
    ):
        self.stack, self.means = stack, means
        self.full = record(stack, ids)
        self.instead = None if corrupted is None else record(stack, corrupted)
        self.open: list[Bool[Tensor, "batch head query key"]] = [weight > 0 for weight in self.full.weights]
        if self.instead is not None:
            self.open = [edges | (weight > 0) for edges, weight in zip(self.open, self.instead.weights, strict=True)]

    def logits(
        self, kept: Switches, off: Off = "mean", *, start: int = 0, frozen: bool = False
    ) -> Float[Tensor, "sample_batch token"]:
        """Next-token logits, differentiable in the switches: samples x prompts, the prompts of a sample together.

        Args:
            kept: per layer the switches, 1 for an edge that is kept; None keeps all of a layer.
            start: the first layer in which something is off. Those before it are not run again.
            frozen: weights are those of the whole model.
        """
        samples = max((len(some) for some in kept if some is not None), default=1)
        residual = self.full.residuals[start].repeat(samples, 1, 1)
        for layer in range(start, self.stack.graph.layers):
            parts = self.stack.anatomy.layers[layer]
            heads = self._heads(layer, self.stack.project(layer, residual), kept[layer], off, frozen)
            attention = parts.after_attention(parts.output(heads.transpose(1, 2).flatten(2)))
            residual = self.stack.finish_layer(layer, residual, attention)
        return self.stack.logits(residual)

    def _heads(
        self, layer: int, projected: Projected, kept: Tensor | None, off: Off, frozen: bool
    ) -> Float[Tensor, "batch head time value_dim"]:
        samples = len(projected.query) // len(self.full.logits)
        gate = self.stack.anatomy.layers[layer].attention.edge_gate
        if frozen:
            weight = self.full.weights[layer].repeat(samples, 1, 1, 1)
        else:
            weight = self.stack.edge_weights(layer, projected)
        value = gate.deviation(projected.value).repeat_interleave(weight.shape[1] // projected.value.shape[1], dim=1)
        weight = weight.to(value.dtype)
        if kept is None:
            output = weight @ value
        else:
            switch = kept.to(weight.dtype).expand(samples, len(self.full.logits), -1, -1, -1).flatten(0, 1)
            output = (weight * switch) @ value
            if off == "mean":
                assert self.means is not None, "means are needed"
                gone = (weight * (1 - switch)).sum(-1, keepdim=True)
                output = output + gone * self.means[layer].to(value.dtype)[:, None]
            elif off == "corrupted":
                assert self.instead is not None, "corrupted prompts are needed"
                weights, values = self.instead.weights[layer], self.instead.values[layer]
                gone = weights.repeat(samples, 1, 1, 1).to(value.dtype) * (1 - switch)
                output = output + gone @ values.repeat(samples, 1, 1, 1)
        return gate.restored(output.transpose(1, 2)).transpose(1, 2)


@torch.no_grad()
def record(stack: Stack, ids: Int[Tensor, "batch time"]) -> Recorded:
    """Runs the whole model and keeps what edges pass."""
    residual = stack.embed(ids)
    residuals, weights, values = [], [], []
    for layer in range(stack.graph.layers):
        projected = stack.project(layer, residual)
        gate = stack.anatomy.layers[layer].attention.edge_gate
        residuals.append(residual)
        weights.append(stack.edge_weights(layer, projected))
        group = projected.query.shape[1] // projected.value.shape[1]
        values.append(gate.deviation(projected.value).repeat_interleave(group, dim=1))
        residual = stack.layer(layer, residual)
    return Recorded(residuals, weights, values, stack.logits(residual))


@torch.no_grad()
def means(stack: Stack, prompts: Iterable[Sequence[int]]) -> list[Float[Tensor, "head value_dim"]]:
    """What each head passes per unit of attention weight, on average over all positions of some prompts. 0 for a head
    that passes nothing on any of them."""
    passed: list[Tensor] = []
    weight: list[Tensor] = []
    for ids in prompts:
        found = record(stack, torch.tensor([ids], device=stack.model.device))
        some = [(w.to(u.dtype) @ u)[0].sum(1) for w, u in zip(found.weights, found.values, strict=True)]
        of_each = [w[0].sum((1, 2)) for w in found.weights]
        passed = [a + b for a, b in zip(passed, some, strict=True)] if passed else some
        weight = [a + b for a, b in zip(weight, of_each, strict=True)] if weight else of_each
    return [p / w.clamp_min(1e-9)[:, None] * (w > 0)[:, None] for p, w in zip(passed, weight, strict=True)]
