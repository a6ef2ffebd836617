"""The page's interactive part: one sentence, its tokens, and arcs to the tokens that each head reads.

`templates/explorer.html` writes the tokens and the numbers, `assets/page.js` draws. No text travels in the data.
"""

import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lit_sparse.records.run import AttentionExample
from lit_sparse.report.run.attention_maps import moving_most
from lit_sparse.report.shared.page_data import FLOORS

DATA_BUDGET = 1_500_000  # characters of attention data in the page
CHIPS = 6


class Side(NamedTuple):
    """A model's side of the sentence.

    place: "before" is left of the tokens, "after" right of them; they are also the classes of the side's elements.
    whole: all of its edges are drawn, as those that are open; else its weights from the floor on.
    """

    place: str
    name: str
    whole: bool
    model: str = ""


BEFORE, AFTER = Side("before", "Base model", False), Side("after", "Sparse model", True)


class Explorer(NamedTuple):
    """Data of `explorer.html`."""

    title: str | None
    tokens: list[str]
    sides: list[Side]
    data: dict[str, object]

    @classmethod
    def of(cls, example: AttentionExample) -> "Explorer":
        return cls(example.title, example.tokens, [BEFORE, AFTER], encode_attention(example))


def encode_attention(example: AttentionExample, budget: int = DATA_BUDGET) -> dict[str, object]:
    """An example's weights: see `encode_sides`."""
    return encode_sides({BEFORE: example.before, AFTER: example.after}, budget)


def encode_sides(
    sides: Mapping[Side, Float[np.ndarray, "layers heads tokens tokens"]], budget: int
) -> dict[str, object]:
    """The weights of one side or two as sparse lists [query * T + key, weight in thousandths, ...], one a head.

    A side that is `whole` holds every open edge, as long as these are within `budget` characters. Of the others it is
    weights >= `floor`, which rises from 0.01 until the text of all lists is within the budget. The side "after" has to
    be there: it says how dark a head is on the map.
    """
    weights = {side.place: one for side, one in sides.items()}
    layers, heads, size, _ = weights["after"].shape
    for floor in FLOORS:
        lists = {side.place: _sparse_lists(one, 0.0 if side.whole else floor) for side, one in sides.items()}
        if sum(map(_length, lists.values())) <= budget:
            break
    return {
        "layers": layers,
        "heads": heads,
        "size": size,
        "floor": floor,
        "top": moving_most(weights["after"], CHIPS),
        "sides": {side.place: {"name": side.name, "whole": side.whole} for side in sides},
    } | lists


def _sparse_lists(weights: Float[np.ndarray, "layers heads tokens tokens"], floor: float) -> list[list[int]]:
    layers, heads, size, _ = weights.shape
    flat = np.tril(np.nan_to_num(weights)).reshape(layers * heads, size * size)
    lists: list[list[int]] = []
    for row in flat:
        (index,) = np.nonzero((row > 0) & (row >= floor))
        thousandths = np.rint(row[index] * 1000).astype(int)
        lists.append(np.stack([index, thousandths], axis=1).ravel().tolist())
    return lists


def _length(lists: list[list[int]]) -> int:
    return len(json.dumps(lists, separators=(",", ":")))
