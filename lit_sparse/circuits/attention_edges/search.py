"""From a goal to a circuit: a mask is learnt, cut to what meets the goal, and made minimal by real ablation."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from lit_sparse.circuits.attention_edges.edges import EdgeList
from lit_sparse.circuits.attention_edges.goals import Goal
from lit_sparse.circuits.attention_edges.mask import DEFAULT, Learning, learn_mask
from lit_sparse.circuits.attention_edges.minimal import Ablations, exchanged, grown, minimal, shortest_prefix
from lit_sparse.circuits.attention_edges.passes import Passes

_MANY = 150
"""Edges that are taken out one by one; twice as many where that cannot be helped."""
_FIRST = 40
"""Edges from which a circuit grows."""
_ROUNDS = 3


Level = Literal["edge", "head"]
"""What is switched: attention edges one by one, or a head's together."""


class Found(NamedTuple):
    """A circuit: which of the listed edges it keeps, and the passes by which that was found out."""

    kept: Bool[Tensor, " edge"]
    ablations: Ablations

    @property
    def size(self) -> int:
        return int(self.kept.sum())

    def edges(self) -> set[tuple[int, int, int, int]]:
        """As (layer, head, query, key); of heads query and key are 0."""
        listed = self.ablations.edges
        columns = (listed.layer, listed.head, listed.query, listed.key)
        return set(zip(*(column[self.kept].tolist() for column in columns), strict=True))


def listed(passes: Passes, level: Level = "edge") -> EdgeList:
    """The open edges of each prompt, or the heads that have any."""
    if level == "head":
        return EdgeList([layer.any(dim=(2, 3), keepdim=True) for layer in passes.open])
    return EdgeList(passes.open)


def find(
    passes: Passes,
    goal: Goal,
    learning: Learning = DEFAULT,
    *,
    seed: int = 0,
    advance: Callable[[int], object] | None = None,
) -> Found | None:
    """A minimal circuit: it meets the goal, and no single edge can go. None where no mask met the goal, which cannot be
    where all edges together do. Of several prompts, one circuit by position: it meets the goal on average.

    Args:
        seed: of the masks that are drawn.
        advance: called with 1 after each of `learning.steps` steps.
    """
    edges = EdgeList([layer.any(0, keepdim=True) for layer in passes.open])
    logits = learn_mask(passes, edges, goal, learning, seed=seed, advance=advance)
    return _cut(passes, edges, goal, logits, learning, seed)


def find_each(
    passes: Passes, goal: Goal, learning: Learning = DEFAULT, *, level: Level = "edge", seed: int = 0
) -> list[Found | None]:
    """A circuit for each of several prompts, as `find` does for one. Their masks are learnt side by side, so that the
    weights are read once for all of them.

    Args:
        level: "head" finds the smallest set of whole heads.
    """
    edges = listed(passes, level)
    logits = learn_mask(passes, edges, goal, learning, seed=seed)
    found = []
    for prompt in range(len(passes)):
        alone = passes.only(prompt)
        found.append(
            _cut(alone, listed(alone, level), goal.only(prompt), logits[edges.prompt == prompt], learning, seed)
        )
    return found


def _cut(passes: Passes, edges: EdgeList, goal: Goal, logits: Tensor, learning: Learning, seed: int) -> Found | None:
    """The circuit in a learnt order of edges. Where too many of the first would be needed, because some that count come
    late, a circuit grows from the very first; where that fails, a mask is learnt again of those that are enough."""
    for left in reversed(range(_ROUNDS)):
        ablations, order = Ablations(passes, edges, goal), logits.argsort(descending=True)
        kept = shortest_prefix(ablations, order)
        if kept is None:
            return None
        if int(kept.sum()) > _MANY:
            first = torch.zeros_like(kept).index_fill(0, order[:_FIRST], True)
            grown_from_first = grown(ablations, first, order, most=2 * _MANY)
            kept = kept if grown_from_first is None else grown_from_first
        if left == 0 or int(kept.sum()) <= 2 * _MANY:
            return Found(exchanged(ablations, minimal(ablations, kept), order), ablations)
        edges = edges.some(kept)
        logits = learn_mask(passes, edges, goal, learning, seed=seed)
    raise AssertionError("the last round returns")
