"""Forward passes of some prompts with single attention edges switched off: the real ablations.

An edge (layer, head, query, key) passes w_ij u_j into its head's output, where u_j is the key's value (minus the gate's
center if it has one). A switch a_ij of every edge says whether the edge is kept:

    o_i = c + sum_j a_ij w_ij u_j + sum_j (1 - a_ij) w'_ij u'_j

    zero        u' = 0: an edge that is off passes nothing
    mean        w' is the weight in the whole model, u' is what the head passes per unit of weight on average (`means`):
                the edge keeps its weight and loses its content. In a dense model, where weights sum to one, a head
                without edges writes its mean output
    corrupted   w' and u' are those of the corrupted prompt

An edge that is off passes a constant. Kept edges are computed anew, with weights and gates, from the changed queries
and keys; or weights are frozen at those of the whole model.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_sparse.anatomy.calls import Projected
from lit_sparse.anatomy.stack import Stack
from lit_sparse.attention.edge_weights import Passed
from lit_sparse.records.sentence_circuit import Off

Means = Sequence[Float[Tensor, "head value_dim"]]
Switches = Sequence[Float[Tensor, "some prompts head query key"] | None]
"""Switches of every layer. `prompts` is 1 if prompts share them. None keeps all edges of a layer."""

TOKENS_AT_ONCE = 640
"""Number of tokens in one batch of passes. Memory grows with it."""


@dataclass(frozen=True)
class Recorded:
    """Run of the whole model on some prompts: for each layer, the residual stream before it and what its edges pass."""

    residuals: list[Float[Tensor, "batch time model"]]
    passed: list[Passed]
    allowed: int
    logits: Float[Tensor, "batch token"]

    def only(self, prompts: slice) -> "Recorded":
        return Recorded(
            [residual[prompts] for residual in self.residuals],
            [Passed(layer.weights[prompts], layer.values[prompts]) for layer in self.passed],
            self.allowed,
            self.logits[prompts],
        )


class Course(NamedTuple):
    """One pass with some edges: for each layer, the residual stream before it, and its queries, keys and values. Passes
    that differ from it only in later layers or at later positions start from it."""

    residuals: list[Float[Tensor, "batch time model"]]
    projected: list[Projected]


class Passes:
    """Passes of prompts of one length through a `Stack`.

    Args:
        ids: the prompts, without padding.
        off: what switched-off edges pass: "zero", "mean" or "corrupted" (see the top of this file).
        means: means of the heads, for "mean".
        corrupted: prompts of the same length, for "corrupted".
        frozen: True if weights stay those of the whole model.
        between: True if only edges between different positions are switched. Edges from a position to itself are then
            always kept and are not in `open`.

    Attributes:
        whole: the run of the whole model on the prompts.
        open: for each layer, the edges with a weight above 0; in a dense model all that causality allows. With
            corrupted prompts, the edges that are open on either prompt.
        instead: for each layer, what switched-off edges pass; None if they pass nothing.

    Raises:
        ValueError: means or corrupted prompts are missing.
    """

    @torch.no_grad()
    def __init__(
        self,
        stack: Stack,
        ids: Int[Tensor, "batch time"],
        off: Off = "mean",
        *,
        means: Means | None = None,
        corrupted: Int[Tensor, "other_batch other_time"] | None = None,
        frozen: bool = False,
        between: bool = False,
    ):
        self.stack, self.ids, self.off, self.frozen = stack, ids, off, frozen
        self.whole = record(stack, ids)
        self.open: list[Bool[Tensor, "batch head query key"]] = [layer.weights > 0 for layer in self.whole.passed]
        self.instead: list[Passed] | None = None
        if off == "mean":
            if means is None:
                raise ValueError("edges that pass their head's mean need the means: give `means(stack, prompts)`")
            self.instead = [
                Passed(layer.weights, mean[:, None].expand_as(layer.values))
                for layer, mean in zip(self.whole.passed, means, strict=True)
            ]
        elif off == "corrupted":
            if corrupted is None or corrupted.shape != ids.shape:
                raise ValueError("off = 'corrupted' needs corrupted prompts of the same shape as the prompts")
            self.instead = record(stack, corrupted).passed
            self.open = [here | (layer.weights > 0) for here, layer in zip(self.open, self.instead, strict=True)]
        self._always = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device) if between else None
        if self._always is not None:
            self.open = [edges & ~self._always for edges in self.open]

    @property
    def allowed(self) -> int:
        """Edges that a prompt's masks allow, over all layers and heads."""
        return self.whole.allowed

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, prompt: int) -> "Passes":
        """The passes of one of the prompts."""
        one = slice(prompt, prompt + 1)
        found = copy(self)
        found.ids, found.whole = self.ids[one], self.whole.only(one)
        found.open = [layer[one] for layer in self.open]
        if self.instead is not None:
            found.instead = [Passed(layer.weights[one], layer.values[one]) for layer in self.instead]
        return found

    def logits(
        self, kept: Switches, *, start: int = 0, first: int = 0, course: Course | None = None
    ) -> Float[Tensor, "sample_batch token"]:
        """Next-token logits of samples x prompts, the prompts of a sample together. Differentiable in the switches.

        Args:
            kept: for each layer, the switches of the same number of samples; 1 keeps an edge.
            start: the first layer to run.
            first: the first position to run; other than 0 only if `stack.takes_positions`.
            course: the pass that gives the state before that layer and that position. Default the whole model's, which
                suffices for `start` only.
        """
        samples = max((len(some) for some in kept if some is not None), default=1)
        residuals = self.whole.residuals if course is None else course.residuals
        residual = residuals[start][:, first:].repeat(samples, 1, 1)
        for layer in range(start, self.stack.graph.layers):
            if first == 0:
                projected = self.stack.project(layer, residual)
            else:
                assert course is not None
                earlier = (part[:, :, :first].repeat(samples, 1, 1, 1) for part in course.projected[layer])
                projected = self.stack.project_last(layer, residual, Projected(*earlier))
            residual = self._layer(layer, residual, projected, kept[layer])
        return self.stack.logits(residual)

    @torch.no_grad()
    def ablated(self) -> Float[Tensor, "batch token"]:
        """Next-token logits with every edge off."""
        return self.logits([torch.zeros_like(edges, dtype=torch.float32)[None] for edges in self.open])

    @torch.no_grad()
    def course(self, kept: Switches) -> Course:
        """The pass with one sample of switches."""
        residual, found = self.whole.residuals[0], Course([], [])
        for layer in range(self.stack.graph.layers):
            projected = self.stack.project(layer, residual)
            found.residuals.append(residual)
            found.projected.append(projected)
            residual = self._layer(layer, residual, projected, kept[layer])
        return found

    def _layer(
        self, layer: int, residual: Tensor, projected: Projected, kept: Tensor | None
    ) -> Float[Tensor, "batch time model"]:
        parts = self.stack.anatomy.layers[layer]
        heads = self._heads(layer, projected, kept)
        attention = parts.after_attention(parts.output(heads.transpose(1, 2).flatten(2)))
        return self.stack.finish_layer(layer, residual, attention)

    def _heads(
        self, layer: int, projected: Projected, kept: Tensor | None
    ) -> Float[Tensor, "batch head time value_dim"]:
        samples, rows = len(projected.query) // len(self), projected.query.shape[2]
        gate = self.stack.anatomy.layers[layer].attention.edge_gate
        value = _per_head(gate.deviation(projected.value), projected.query.shape[1])
        if self.frozen:
            weight = self.whole.passed[layer].weights[:, :, -rows:].repeat(samples, 1, 1, 1)
        else:
            weight = self.stack.edge_weights(layer, projected)
        weight = weight.to(value.dtype)
        if kept is None:
            output = weight @ value
        else:
            switch = kept[..., -rows:, :].to(value.dtype).expand(samples, len(self), -1, -1, -1)
            if self._always is not None:
                switch = switch.masked_fill(self._always[-rows:], 1)
            output = (weight * switch.flatten(0, 1)) @ value
            if self.instead is not None:
                weights, values = self.instead[layer]
                off = (weights[:, :, -rows:].to(value.dtype) * (1 - switch)) @ values
                output = output + off.flatten(0, 1)
        restored: Tensor = gate.restored(output.transpose(1, 2))
        return restored.transpose(1, 2)


@torch.no_grad()
def record(stack: Stack, ids: Int[Tensor, "batch time"]) -> Recorded:
    """Runs the whole model and records what edges pass."""
    residual = stack.embed(ids)
    residuals, passed, allowed = [], [], 0
    for layer in range(stack.graph.layers):
        projected = stack.project(layer, residual)
        gate = stack.anatomy.layers[layer].attention.edge_gate
        values = _per_head(gate.deviation(projected.value), projected.query.shape[1])
        residuals.append(residual)
        passed.append(Passed(stack.edge_weights(layer, projected), values))
        allowed += stack.allowed_edges(layer, projected)
        residual = stack.layer(layer, residual, projected)
    return Recorded(residuals, passed, allowed, stack.logits(residual))


def means(stack: Stack, prompts: Iterable[Sequence[int]]) -> list[Float[Tensor, "head value_dim"]]:
    """Mean of what each head passes per unit of attention weight, over all positions of some prompts (token ids). It is
    0 for a head that passes nothing on any of them.

    Raises:
        ValueError: there are no prompts.
    """
    passed: list[Tensor] = []
    weight: list[Tensor] = []
    by_length: dict[int, list[list[int]]] = {}
    for ids in prompts:
        by_length.setdefault(len(ids), []).append(list(ids))
    for same in by_length.values():
        found = record(stack, torch.tensor(same, device=stack.model.device)).passed
        outputs = [(layer.weights.to(layer.values.dtype) @ layer.values).sum((0, 2)) for layer in found]
        masses = [layer.weights.sum((0, 2, 3)) for layer in found]
        passed = [a + b for a, b in zip(passed, outputs, strict=True)] if passed else outputs
        weight = [a + b for a, b in zip(weight, masses, strict=True)] if weight else masses
    if not passed:
        raise ValueError("a head's mean needs prompts to take it over")
    return [p / w.clamp_min(1e-9)[:, None] * (w > 0)[:, None] for p, w in zip(passed, weight, strict=True)]


def _per_head(value: Float[Tensor, "batch kv_head key dim"], heads: int) -> Float[Tensor, "batch head key dim"]:
    return value.repeat_interleave(heads // value.shape[1], dim=1)
