"""The page's interactive piece: one sentence, its tokens, and arcs to what each head reads.

`templates/explorer.html` writes the tokens and the numbers, `assets/page.js` draws. No text travels in the data.
"""

import json
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lit_sparse.records.run import AttentionExample
from lit_sparse.report.run.attention_maps import strongest_heads
from lit_sparse.report.shared.page_data import FLOORS

DATA_BUDGET = 1_500_000  # characters of attention data in the page
CHIPS = 6


class Explorer(NamedTuple):
    """What `explorer.html` shows."""

    title: str | None
    tokens: list[str]
    data: dict[str, object]

    @classmethod
    def of(cls, example: AttentionExample) -> "Explorer":
        return cls(example.title, example.tokens, encode_attention(example))


def encode_attention(example: AttentionExample, budget: int = DATA_BUDGET) -> dict[str, object]:
    """The example's weights as sparse lists [query * T + key, weight in thousandths, ...], one a head.

    `after` holds every open edge. `before` holds weights >= `floor`, which rises from 0.01 until the text of
    all lists is within `budget` characters.
    """
    layers, heads, size, _ = example.before.shape
    after = _sparse_lists(example.after, 0.0)
    room = budget - _length(after)
    for floor in FLOORS:
        before = _sparse_lists(example.before, floor)
        if _length(before) <= room:
            break
    return {
        "layers": layers,
        "heads": heads,
        "size": size,
        "floor": floor,
        "top": strongest_heads(example, CHIPS),
        "before": before,
        "after": after,
    }


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
