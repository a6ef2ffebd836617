"""Blocks of blockwise attention, and the interface of row kernels on a block."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from lit_sparse.attention.interface import Formula
from lit_sparse.attention.masks import EdgeMask


class Tile(NamedTuple):
    """One block: a range of the B G key heads, of queries and of keys."""

    heads: slice
    queries: slice
    keys: slice


class Problem(NamedTuple):
    """Contiguous inputs of row kernels besides a block's scores. Row statistics, which forward fills in, are folded."""

    mask: EdgeMask
    cutoff: Float[Tensor, " head"]
    offset: Float[Tensor, "batch kv_head key"] | None
    seeds: Int[Tensor, " batch"] | None
    formula: Formula
    batch: int
    kv_heads: int
    group: int
    lse: Float[Tensor, "heads rows"]
    mass: Float[Tensor, "heads renormalised_rows"]
    expected: Float[Tensor, "heads rows"]
    opened: Float[Tensor, "heads rows"]


@runtime_checkable
class RowKernels(Protocol):
    """Computation between the matrix products, in place on a block's scores (heads, rows, keys)."""

    def forward(self, problem: Problem, tile: Tile, scores: Tensor) -> None:
        """Turns scores q . k into gated weights, and fills the tile's rows of lse, mass, expected and opened."""

    def backward(
        self,
        problem: Problem,
        tile: Tile,
        scores: Tensor,
        gradients: Tensor,
        delta: Tensor,
        d_expected: Tensor,
        gate_gradient: Tensor,
        key_gradient: Tensor | None,
    ) -> None:
        """Turns scores into gated weights, and `gradients` do . v into those of q . k. Fills the row sums of c and,
        with an offset, the block's c (heads, rows, keys)."""
