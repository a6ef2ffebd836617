"""Edits of a model's attention edges, as rules on its layers' weights.

An edge connects one query to one key in one head of one layer. In the model it passes w_ij u_j into its head's output
o_i = c + sum_j w_ij u_j (u_j: the key's value, minus the gate's center c if it has one). An edit changes only what its
own edges pass. The weights of the other edges are not normalised again.
"""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Which = int | Sequence[int] | None
"""One number, several, or all (None)."""
Weights = Float[Tensor, "batch head query key"]
First = tuple[int, int]
"""Positions in the sequence of a pass's first query and first key."""
_Integers = list[int] | None
# From w, softmax and mask at some edges: what each passes of its value, and whether it is closed.
_Action = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
# From the number of heads, queries and keys of a pass, and its first positions: an index of the edges meant.
_Place = Callable[[Sequence[int], First], tuple[Tensor, Tensor, Tensor]]


class Edit:
    """The edits of a model, in the context that `edit` opens. If two edits name the same edge, the later one holds.

    These arguments name edges. Each is an int, a sequence of ints (all combinations are meant), or None for all:

    layer: number of the attention layer, in the order in which layers run.
    head: number of the query head.
    query, key: positions in the whole sequence, padding included. If a prompt is padded on the left, its first token is
        not at 0; with n tokens in a cache, the next query is at n. Positions that a sequence does not have are no
        error. Edges that its mask does not allow (causality, windows, padding) always pass nothing.

    Raises:
        ValueError: the model does not have the layer or head, a position is negative, or keys come after all queries.
        TypeError: an argument is neither an int, nor a sequence of ints, nor None.
        RuntimeError: the context is over.
    """

    def __init__(self, heads: Sequence[int]):
        self._heads, self._over = heads, False
        self._rules: list[list[tuple[_Place, _Action]]] = [[] for _ in heads]
        self._said: list[str] = []

    def close(self, *, layer: Which = None, head: Which = None, query: Which = None, key: Which = None) -> None:
        """Closes edges, so that they pass nothing, or the values of `instead` if it was given."""
        self._add("close", _closed, layer, head, query, key)

    def open(self, *, layer: Which = None, head: Which = None, query: Which = None, key: Which = None) -> None:
        """Opens edges, so that they pass their value. If the gate is open, the weight is the model's own w_ij, which
        undoes earlier edits. If it is closed, the weight is the softmax's p_ij (over all allowed keys)."""
        self._add("open", _opened, layer, head, query, key)

    def clamp(
        self, *, weight: float, layer: Which = None, head: Which = None, query: Which = None, key: Which = None
    ) -> None:
        """Clamps edges, so that they pass `weight`, any finite number, times their value (with centered gates, its
        deviation)."""
        if not math.isfinite(weight):
            raise ValueError(f"an edge's weight is a finite number, not {weight}")
        self._add("clamp", partial(_clamped, float(weight)), layer, head, query, key, f"weight={weight:g}")

    def keep(self, edges: Iterable[Sequence[int]]) -> None:
        """Keeps only these edges, each given as (layer, head, query, key), and undoes earlier edits. The kept edges
        pass what they pass in the model (nothing if a gate is closed). All others are closed. With `instead` they pass
        its values, also those that the model's own gates close."""
        listed = [tuple(map(operator.index, edge)) for edge in edges]
        for edge in listed:
            if len(edge) != 4:
                raise ValueError(f"an edge is (layer, head, query, key), not {edge}")
            self._checked(*edge)
        self.clear()
        of_layer: list[list[tuple[int, ...]]] = [[] for _ in self._heads]
        for edge in listed:
            of_layer[edge[0]].append(edge[1:])
        for rules, some in zip(self._rules, of_layer, strict=True):
            kept = torch.tensor(some, dtype=torch.int64).view(-1, 3)
            rules += [(partial(_block, None, None, None), _closed), (partial(_points, kept), _as_it_was)]
        self._said = [f"keep({len(listed)} edges)"]

    def applied(
        self, layer: int, own: Weights, softmax: Weights, allowed: Bool[Tensor, "batch head query key"], first: First
    ) -> tuple[Weights, Bool[Tensor, "batch head query key"]]:
        """Weight with which every edge of a layer passes its value, and mask of the allowed edges that edits close.

        Args:
            own: w, the softmax weights after the gates.
        """
        passes, closed = own.clone(), torch.zeros_like(allowed)
        for place, action in self._rules[layer]:
            at = (slice(None), *place(own.shape[1:], first))
            passes[at], closed[at] = action(own[at], softmax[at], allowed[at])
        return passes, closed

    def concerns(self, layer: int) -> bool:
        """True if there are edits of a layer."""
        return bool(self._rules[layer])

    def end(self) -> None:
        """Ends the context."""
        self.clear()
        self._over = True

    def clear(self) -> None:
        """Undoes all edits."""
        self._check_time()
        self._rules, self._said = [[] for _ in self._heads], []

    def _check_time(self) -> None:
        if self._over:
            raise RuntimeError("this context of lit_sparse.edit is over: make edits inside it")

    def __repr__(self) -> str:
        shown = self._said[:4] + [f"{len(self._said) - 4} more"] * (len(self._said) > 4)
        return f"<edit of {len(self._heads)} layers: {', '.join(shown) or 'nothing'}>"

    def _add(self, name: str, action: _Action, layer: Which, head: Which, query: Which, key: Which, *said: str) -> None:
        self._check_time()
        layers, heads, queries, keys = self._checked(layer, head, query, key)
        for one in range(len(self._heads)) if layers is None else layers:
            self._rules[one].append((partial(_block, heads, queries, keys), action))
        names = {"layer": layers, "head": heads, "query": queries, "key": keys}
        given = [f"{name}={_short(some)}" for name, some in names.items() if some is not None]
        self._said.append(f"{name}({', '.join([*given, *said])})")

    def _checked(
        self, layer: Which, head: Which, query: Which, key: Which
    ) -> tuple[_Integers, _Integers, _Integers, _Integers]:
        layers, heads = _integers("layer", layer), _integers("head", head)
        queries, keys = _integers("query", query), _integers("key", key)
        count = len(self._heads)
        for one in layers or ():
            if not 0 <= one < count:
                raise ValueError(f"there is no layer {one}: this model has {count}, counted from 0")
        for one in range(count) if layers is None else layers:
            for other in heads or ():
                if not 0 <= other < self._heads[one]:
                    raise ValueError(f"there is no head {other}: layer {one} has {self._heads[one]}, counted from 0")
        for name, some in (("query", queries), ("key", keys)):
            if some and min(some) < 0:
                raise ValueError(f"{name} {min(some)}: positions count from the beginning of the sequence, at 0")
        if queries and keys and min(keys) > max(queries):
            raise ValueError(f"query {max(queries)} cannot attend to key {min(keys)}, which comes later")
        return layers, heads, queries, keys


def _as_it_was(own: Tensor, softmax: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    return own, torch.zeros_like(allowed)


def _closed(own: Tensor, softmax: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(own), allowed


def _opened(own: Tensor, softmax: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(own > 0, own, softmax), torch.zeros_like(allowed)


def _clamped(weight: float, own: Tensor, softmax: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    return weight * allowed.to(own.dtype), torch.zeros_like(allowed)


def _block(
    heads: _Integers, queries: _Integers, keys: _Integers, shape: Sequence[int], first: First
) -> tuple[Tensor, Tensor, Tensor]:
    """All combinations of these heads and positions that a pass has."""
    found = []
    for wanted, start, count in zip((heads, queries, keys), (0, *first), shape, strict=True):
        those = range(start, start + count)
        found.append(
            torch.tensor([one - start for one in (those if wanted is None else wanted) if one in those]).long()
        )
    return found[0][:, None, None], found[1][:, None], found[2]


def _points(edges: Tensor, shape: Sequence[int], first: First) -> tuple[Tensor, Tensor, Tensor]:
    """The edges of a list (edge, 3) that a pass has."""
    places = edges - torch.tensor([0, *first])
    inside = ((places >= 0) & (places < torch.tensor(shape))).all(1)
    head, query, key = places[inside].T
    return head, query, key


def _integers(name: str, which: Which) -> _Integers:
    if which is None:
        return None
    with suppress(TypeError):  # arrays and tensors have __index__ too
        return [operator.index(which)]  # type: ignore[arg-type]
    try:
        return [operator.index(one) for one in which]  # type: ignore[union-attr]
    except TypeError as error:
        raise TypeError(f"{name} is an int, a sequence of ints, or None, not {which!r}") from error


def _short(some: list[int]) -> str:
    return str(some[0]) if len(some) == 1 else f"[{', '.join(map(str, some[:4]))}{', ...' if len(some) > 4 else ''}]"
