"""Forward passes of some prompts with attention edges switched off, one by one: the real ablations.

An edge (layer, head, query, key) passes w_ij u_j into its head's output, u_j being the key's value (less the gate's
center where it has one). Of every edge a switch a_ij says whether it is kept:

    o_i = c + sum_j a_ij w_ij u_j + sum_j (1 - a_ij) w'_ij u'_j

    zero        u' = 0: an edge that is off passes nothing
    mean        w' is the weight in the whole model, u' what the head passes per unit of weight on average (`means`):
                the edge passes what it did, but for its content. In a dense model, where weights sum to one, a head
                without edges writes its mean output
    corrupted   w' and u' as on the corrupted prompt

What an edge that is off passes is a constant. What is kept is computed anew, weights and gates included, from what
queries and keys have become; or weights are frozen at those of the whole model.
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
"""Of every layer; prompts is 1 where they share them. None keeps all edges of a layer."""

TOKENS_AT_ONCE = 640
"""In one batch of passes: memory grows with it."""


@dataclass(frozen=True)
class Recorded:
    """The whole model on some prompts: per layer the residual stream before it and what edges pass."""

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
    """One pass with some edges: per layer the residual stream before it, and what its attention works on. Passes that
    differ from it in later layers or at later positions only start from it."""

    residuals: list[Float[Tensor, "batch time model"]]
    projected: list[Projected]


class Passes:
    """Prompts of one length in a model taken apart.

    Args:
        ids: the prompts, without padding.
        off: what edges pass that are switched off.
        means: for "mean".
        corrupted: for "corrupted": prompts of the same length.
        frozen: weights stay those of the whole model.
        between: only edges between different positions are switched. Those from a position to itself are always kept
            and are not in `open`.

    Attributes:
        whole: the whole model on the prompts.
        open: per layer, the edges that pass anything: in a dense model all that causality allows. With corrupted
            prompts, those that are open on either.
        instead: per layer what edges pass that are off; None where that is nothing.

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
                raise ValueError("edges that pass what they do on corrupted prompts need some of the same shape")
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
        """Next-token logits, differentiable in the switches: samples x prompts, the prompts of a sample together.

        Args:
            kept: per layer the switches, 1 for an edge that is kept, of equally many samples.
            start: the first layer to run.
            first: the first position to run, where `stack.takes_positions`.
            course: what is before that layer and that position; default the whole model's, for `start` only.
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
    """Runs the whole model and keeps what edges pass."""
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
    """What each head passes per unit of attention weight, on average over all positions of some prompts (token ids). 0
    for a head that passes nothing on any of them.

    Raises:
        ValueError: no prompts.
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
