"""Last step to a small circuit: edges are removed by real ablation until none can be removed."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_sparse.circuits.attention_edges.edges import EdgeList
from lit_sparse.circuits.attention_edges.goals import Goal
from lit_sparse.circuits.attention_edges.passes import TOKENS_AT_ONCE, Passes

_BATCH = 24
"""Number of tokens that run in the time in which a batch reads the weights."""

_SHARES = (0.0, 0.08, 0.15, 0.25, 0.35, 0.5, 0.65, 0.8, 1.0)
"""Shares of the edges that can be removed one by one, which are tried together."""
_CANDIDATES = 24
_TRIED = 200
"""Number of edges that are tried, of which the best are added."""
_SIZES = 8
"""Number of prefixes that are tried together."""


class Ablations:
    """Losses of a goal in passes with sets of edges, for one prompt, or on average for several that share edges."""

    def __init__(self, passes: Passes, edges: EdgeList, goal: Goal):
        if edges.prompts != 1:
            raise ValueError(f"the edges belong to {edges.prompts} prompts: list them once for all prompts")
        self.passes, self.edges, self.goal = passes, edges, goal
        self._at_once = max(1, TOKENS_AT_ONCE // passes.ids.numel())

    @torch.no_grad()
    def losses(self, kept: Bool[Tensor, "sample edge"]) -> Float[Tensor, " sample"]:
        """Loss of each set of edges."""
        parts = []
        for some in kept.split(self._at_once):
            logits = self.passes.logits(self.edges.switches(some.float()))
            parts.append(self.goal.loss(logits).mean(1))
        return torch.cat(parts)

    @torch.no_grad()
    def switched(self, kept: Bool[Tensor, " edge"], places: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
        """Loss when one edge alone is switched, on if it is off and off if it is on, for each of some edges."""
        found = self.passes.whole.logits.new_empty(len(places))
        if len(places) == 0:
            return found
        course = self.passes.course(self.edges.switches(kept.float()[None]))
        layers, queries = self.edges.layer[places].tolist(), self.edges.query[places].tolist()
        if not self.passes.stack.takes_positions:
            queries = [0] * len(queries)
        for some in self._together(layers, queries):
            rows = kept.float().repeat(len(some), 1)
            rows[torch.arange(len(some)), places[some]] = (~kept[places[some]]).float()
            start, first = min(layers[edge] for edge in some), min(queries[edge] for edge in some)
            logits = self.passes.logits(self.edges.switches(rows), start=start, first=first, course=course)
            found[some] = self.goal.loss(logits).mean(1)
        return found

    def _together(self, layers: list[int], queries: list[int]) -> list[list[int]]:
        """Batches of edges that are switched together, as the cheapest split of the edges' order. A batch does not
        compute again what comes before its first layer and its first query."""
        prompts, length = self.passes.ids.shape
        depth = self.passes.stack.graph.layers
        order = sorted(range(len(layers)), key=lambda edge: (-queries[edge], -layers[edge]))
        cheapest, split = [0.0], [0]
        for end in range(1, len(order) + 1):
            best, start, first = (math.inf, 0), depth, length
            for begin in reversed(range(end)):
                start, first = min(start, layers[order[begin]]), min(first, queries[order[begin]])
                tokens = (end - begin) * prompts * (length - first)
                if tokens > TOKENS_AT_ONCE and begin < end - 1:
                    break
                best = min(best, (cheapest[begin] + (depth - start) * (tokens + _BATCH), begin))
            cheapest.append(best[0])
            split.append(best[1])
        batches, end = [], len(order)
        while end:
            batches.append(order[split[end] : end])
            end = split[end]
        return batches


def shortest_prefix(ablations: Ablations, order: Int[Tensor, " some"]) -> Bool[Tensor, " edge"] | None:
    """The smallest prefix found of an order of edges that meets the goal; None if none does."""
    size = len(ablations.edges)
    rank = torch.full((size,), size, device=order.device)
    rank[order] = torch.arange(len(order), device=order.device)

    def measure(counts: Sequence[int]) -> list[bool]:
        limit = torch.tensor(counts, device=order.device)[:, None]
        return (ablations.losses(rank < limit) <= ablations.goal.tolerance).tolist()

    grid = sorted({min(len(order), round(1.5**i)) for i in range(1, 40)} | {len(order)})
    fits: dict[int, bool] = {}
    while grid and not any(fits.values()):  # the smallest first: few circuits need more
        fits |= dict(zip(grid[:_SIZES], measure(grid[:_SIZES]), strict=True))
        grid = grid[_SIZES:]
    while any(fits.values()):
        best = min(count for count, fit in fits.items() if fit)
        below = max((count for count in fits if count < best), default=0)
        between = sorted({round(below + (best - below) * i / 9) for i in range(1, 9)} - set(fits))
        between = [count for count in between if count > 0]
        if not between or best - below <= max(1, best // 16):
            return rank < best
        fits |= dict(zip(between, measure(between), strict=True))
    return None


def grown(
    ablations: Ablations, kept: Bool[Tensor, " edge"], order: Int[Tensor, " some"], most: int
) -> Bool[Tensor, " edge"] | None:
    """Adds edges, those that reduce the loss most first, until the goal is met; None if `most` are not enough.

    Args:
        order: edges to try. The next edges in it that are not kept are tried one by one, then the best of them
            together.
    """
    loss = float(ablations.losses(kept[None]))
    while loss > ablations.goal.tolerance and int(kept.sum()) < most:
        candidates = order[~kept[order]][:_TRIED]
        losses = ablations.switched(kept, candidates)
        helpful = candidates[losses.argsort()][: int((losses < loss).sum())]
        counts = [2**power for power in range(len(helpful).bit_length())]
        trials = kept.repeat(len(counts), 1)
        for row, count in enumerate(counts):
            trials[row, helpful[:count]] = True
        found = ablations.losses(trials).tolist()
        fits = [row for row, loss in enumerate(found) if loss <= ablations.goal.tolerance]
        if not fits and min(found, default=loss) >= loss:
            return None
        best = fits[0] if fits else found.index(min(found))
        kept, loss = trials[best], found[best]
    return kept if loss <= ablations.goal.tolerance else None


def minimal(ablations: Ablations, kept: Bool[Tensor, " edge"], protected: Sequence[int] = ()) -> Bool[Tensor, " edge"]:
    """Removes edges, the least needed first, until the circuit misses the goal without any single one of the rest.

    Each round first removes every edge alone, by real ablation. Then it removes together as many as possible of those
    without which the goal is still met.

    Args:
        kept: a circuit that meets the goal.
        protected: indices of edges that always stay.
    """
    tolerance = ablations.goal.tolerance
    stay = torch.zeros_like(kept)
    stay[list(protected)] = True
    while True:
        (places,) = (kept & ~stay).nonzero(as_tuple=True)
        losses = ablations.switched(kept, places)
        order = places[losses.argsort()][: int((losses <= tolerance).sum())]
        if len(order) == 0:
            return kept
        counts = sorted({max(1, round(len(order) * share)) for share in _SHARES})
        trials = kept.repeat(len(counts), 1)
        for row, count in enumerate(counts):
            trials[row, order[:count]] = False
        fits = (ablations.losses(trials) <= tolerance).tolist()
        if not any(fits):  # by rounding
            return kept
        kept = trials[max(row for row, fit in enumerate(fits) if fit)]


def exchanged(ablations: Ablations, kept: Bool[Tensor, " edge"], order: Int[Tensor, " edge"]) -> Bool[Tensor, " edge"]:
    """Replaces two or more edges by one, as long as that succeeds.

    Args:
        kept: a minimal circuit.
        order: all edges, the most promising first. Of the next ones in it, the one with the smallest loss is tried.
    """
    while int(kept.sum()) > 1:
        candidates = order[~kept[order]][:_CANDIDATES]
        if len(candidates) == 0:
            break
        best = candidates[ablations.switched(kept, candidates).argmin()]
        trial = kept.clone()
        trial[best] = True
        smaller = minimal(ablations, trial, protected=[int(best)])
        if int(smaller.sum()) >= int(kept.sum()):
            break
        needed = float(ablations.switched(smaller, best[None])) > ablations.goal.tolerance
        kept = smaller if needed else minimal(ablations, smaller)
    return kept
