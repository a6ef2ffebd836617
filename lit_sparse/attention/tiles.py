"""The blocks of blockwise attention, and what row kernels do on one."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from lit_sparse.attention.interface import Formula
from lit_sparse.attention.masks import EdgeMask


class Tile(NamedTuple):
    """One block: which of the B G key heads, which queries, which keys."""

    heads: slice
    queries: slice
    keys: slice


class Problem(NamedTuple):
    """All that row kernels need beside a block's scores, contiguous. What forward fills in per row is folded."""

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
    """What happens between the matrix products, in place on a block's scores (heads, rows, keys)."""

    def forward(self, problem: Problem, tile: Tile, scores: Tensor) -> None:
        """Scores q . k become gated weights; fills the tile's rows of lse, mass, expected and opened."""

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
        """Scores become gated weights, `gradients` do . v become those of q . k; fills row sums of c, and with an
        offset the block's c (heads, rows, keys)."""
