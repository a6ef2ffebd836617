"""Faithfulness of circuits: the share of a model's behaviour that they keep, and their smallest size.

Faithfulness is (m_circuit - m_ablated) / (m_clean - m_ablated), with everything outside the circuit ablated. CPR is the
area under it over fractions of edges kept, CMD the area of its distance from 1 (MIB, arXiv 2504.13151). N@90 is the
smallest k such that the k best edges keep 90 % of the behaviour, and every larger k does too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.forward import Writers, activations, run, run_edges, run_nodes
from lit_sparse.circuits.prompts import Prompts
from lit_sparse.common.progress import Counter

Ablation = Literal["patch", "mean"]
Level = Literal["head", "edge"]

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Fractions of all edges at which MIB measures CPR and CMD."""

_PER_DECADE = 5
"""Circuit sizes tried for each factor of ten; the last step is found by bisection."""
_PRECISION = 20
"""Bisection ends where a step is this part of a size."""


class NothingToExplain(ValueError):
    """A model that answers no better on clean prompts than with everything ablated."""


class Evaluator:
    """Measures the faithfulness of circuits on some prompts.

    Args:
        ablation: "patch" replaces activations outside the circuit by the corrupted prompt's, "mean" by their mean over
            the corrupted prompts of the same length.

    Raises:
        NothingToExplain: the metric on the clean prompts is not above the metric with everything ablated.
    """

    def __init__(self, stack: Stack, batches: Sequence[Prompts], ablation: Ablation = "patch"):
        self.stack, self.batches = stack, batches
        self._replacements: list[Writers] = []
        for batch in batches:
            written, _ = activations(stack, batch.corrupted)
            mean = written.mean(1, keepdim=True).expand_as(written)
            self._replacements.append(mean if ablation == "mean" else written)
        self.clean = self._mean(lambda batch, _: run(stack, batch.clean))
        nothing = torch.zeros(len(stack.graph.writers), dtype=torch.bool)
        self.ablated = self._mean(lambda batch, instead: run_nodes(stack, batch.clean, instead, nothing))
        if not self.clean > self.ablated:
            raise NothingToExplain(
                f"the metric is {self.clean:.3f} on clean prompts and {self.ablated:.3f} with everything ablated: "
                "there is no behaviour for a circuit to explain"
            )

    def edges(self, kept: Bool[Tensor, "writer reader"]) -> float:
        """Faithfulness of a circuit of edges."""
        return self._faithfulness(lambda batch, instead: run_edges(self.stack, batch.clean, instead, kept))

    def nodes(self, kept: Bool[Tensor, " writer"]) -> float:
        """Faithfulness of a circuit of nodes, which has all edges between them."""
        return self._faithfulness(lambda batch, instead: run_nodes(self.stack, batch.clean, instead, kept))

    def _faithfulness(self, run: Callable[[Prompts, Writers], Tensor]) -> float:
        return (self._mean(run) - self.ablated) / (self.clean - self.ablated)

    def _mean(self, run: Callable[[Prompts, Writers], Tensor]) -> float:
        pairs = zip(self.batches, self._replacements, strict=True)
        total = sum(float(batch.metric(run(batch, instead)).sum()) for batch, instead in pairs)
        return total / sum(map(len, self.batches))


@dataclass
class Ranking:
    """Edges or heads in the order of their scores' magnitude, best first, and the circuits made of the first k.

    A circuit of heads also has the embedding and all MLPs. A circuit of edges drops the edges on no path from the
    embedding to the logits. Items with a score of 0 (such as a head whose gates are all closed) are left out.
    """

    level: Level
    stack: Stack
    order: Int[Tensor, " item"]
    total: int

    @classmethod
    def of_edges(cls, stack: Stack, scores: Float[Tensor, "writer reader"]) -> "Ranking":
        magnitude = scores.abs().masked_fill(~stack.graph.edges, 0).flatten()
        return cls("edge", stack, _best_first(magnitude), int(stack.graph.edges.sum()))

    @classmethod
    def of_heads(cls, stack: Stack, scores: Float[Tensor, " writer"]) -> "Ranking":
        magnitude = scores.abs() * stack.graph.is_head
        return cls("head", stack, _best_first(magnitude), int(stack.graph.is_head.sum()))

    def circuit(self, count: int) -> Tensor:
        """The best `count` items: (writer, reader) for edges, (writer,) for heads."""
        if self.level == "head":
            kept = ~self.stack.graph.is_head
            kept[self.order[:count]] = True
            return kept
        kept = torch.zeros_like(self.stack.graph.edges)
        kept.view(-1)[self.order[:count]] = True
        return self.stack.graph.connected(kept)

    def sizes(self) -> list[int]:
        """Circuit sizes to measure first."""
        return sizes(self.level, self.total, len(self.order))

    def faithfulness(self, evaluator: Evaluator, count: int) -> float:
        circuit = self.circuit(count)
        return evaluator.nodes(circuit) if self.level == "head" else evaluator.edges(circuit)


@dataclass
class Curve:
    """Faithfulness over circuit size, measured at the ascending `sizes`."""

    level: Level
    total: int
    sizes: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    smallest: dict[float, int | None] = field(default_factory=dict)

    def cpr(self) -> float:
        """Area under faithfulness over `FRACTIONS` of all edges, by trapezoids (MIB's circuit performance ratio)."""
        return self._area(self.values)

    def cmd(self) -> float:
        """Area of |1 - faithfulness| over the same fractions (MIB's circuit-model distance)."""
        return self._area([abs(1 - value) for value in self.values])

    def _area(self, values: list[float]) -> float:
        points = dict(zip(self.sizes, values, strict=True))
        most = self.sizes[-1]  # fewer than all if some edges have a score of 0: they change nothing
        heights = [points[min(_size(self.total, fraction), most)] for fraction in FRACTIONS]
        return float(torch.trapezoid(torch.tensor(heights), torch.tensor(FRACTIONS)))


def curve(
    ranking: Ranking,
    evaluator: Evaluator,
    shares: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
    bar: Counter | None = None,
) -> Curve:
    """Faithfulness at sizes spaced evenly in their logarithm and at `FRACTIONS`, and for every share the smallest
    circuit that keeps it. That size is bisected between the last measured size that falls short and the next one.

    `smallest[share]` is None if even all edges with a score other than 0 fall short. `bar` counts evaluations, of which
    there are `most_evaluations` at most.
    """
    measured: dict[int, float] = {}

    def measure(size: int) -> float:
        if size not in measured:
            measured[size] = ranking.faithfulness(evaluator, size)
            if bar is not None:
                bar.update(1)
        return measured[size]

    result = Curve(ranking.level, ranking.total)
    grid = ranking.sizes()
    for size in grid:
        measure(size)
    for share in shares:
        short = [size for size in grid if measured[size] < share]
        if not short:
            result.smallest[share] = grid[0]
        elif short[-1] == grid[-1]:
            result.smallest[share] = None
        else:
            low, high = short[-1], grid[grid.index(short[-1]) + 1]
            while high - low > max(1, high // _PRECISION):
                middle = (low + high) // 2
                low, high = (low, middle) if measure(middle) >= share else (middle, high)
            result.smallest[share] = high
    result.sizes = sorted(measured)
    result.values = [measured[size] for size in result.sizes]
    return result


def sizes(level: Level, total: int, most: int) -> list[int]:
    """Circuit sizes to measure first, of `total` heads or edges of which `most` have a score other than 0."""
    steps = range(math.ceil(_PER_DECADE * math.log10(max(most, 1))))
    grid = {int(10 ** (step / _PER_DECADE)) for step in steps} | {
        min(_size(total, fraction), most) for fraction in FRACTIONS
    }
    return sorted({0, most} | grid) if level == "head" else sorted({most} | (grid - {0}))


def most_evaluations(grid: Sequence[int], shares: Sequence[float]) -> int:
    """Largest number of circuits that `curve` measures: the grid, and for each share a bisection of one step."""
    steps = [math.ceil(math.log2((high - low) / max(1, low // _PRECISION))) for low, high in pairwise(grid)]
    return len(grid) + len(shares) * max([0, *steps])


def _size(total: int, fraction: float) -> int:
    return max(1, round(total * fraction))


def _best_first(magnitude: Float[Tensor, " item"]) -> Int[Tensor, " nonzero"]:
    order = magnitude.argsort(descending=True, stable=True)
    return order[: int((magnitude > 0).sum())]
