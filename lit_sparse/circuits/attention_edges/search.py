"""Search for the circuit of a goal: a mask is learnt, cut to the edges that meet the goal, and made minimal by real
ablation."""

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
"""Largest number of edges that are removed one by one; twice as many if no smaller circuit was found."""
_FIRST = 40
"""Number of edges from which a circuit grows."""
_ROUNDS = 3


Level = Literal["edge", "head"]
"""Unit that is switched: a single attention edge, or all edges of a head."""


class Found(NamedTuple):
    """A circuit: the listed edges that it keeps, and the passes by which it was found."""

    kept: Bool[Tensor, " edge"]
    ablations: Ablations

    @property
    def size(self) -> int:
        return int(self.kept.sum())

    def edges(self) -> set[tuple[int, int, int, int]]:
        """Kept edges as (layer, head, query, key). For whole heads, query and key are 0."""
        listed = self.ablations.edges
        columns = (listed.layer, listed.head, listed.query, listed.key)
        return set(zip(*(column[self.kept].tolist() for column in columns), strict=True))


def listed(passes: Passes, level: Level = "edge") -> EdgeList:
    """The open edges of each prompt, or the heads that have open edges."""
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
    """A minimal circuit, which meets the goal and misses it without any single edge. For several prompts it is one
    circuit by position that meets the goal on average. None if no mask meets the goal; if all edges together meet it, a
    circuit is found.

    Args:
        seed: seed of the masks that are drawn.
        advance: called with 1 after each of `learning.steps` steps.
    """
    edges = EdgeList([layer.any(0, keepdim=True) for layer in passes.open])
    logits = learn_mask(passes, edges, goal, learning, seed=seed, advance=advance)
    return _cut(passes, edges, goal, logits, learning, seed)


def find_each(
    passes: Passes, goal: Goal, learning: Learning = DEFAULT, *, level: Level = "edge", seed: int = 0
) -> list[Found | None]:
    """A minimal circuit for each of several prompts (see `find`). The masks are learnt side by side, so that the
    weights are read once for all of them.

    Args:
        level: "head" finds a minimal set of whole heads.
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
    """The circuit in a learnt order of edges. If it needs too many of the first edges, because some important ones come
    late, a circuit grows from the very first. If that fails, a mask is learnt again of the edges that are enough."""
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
