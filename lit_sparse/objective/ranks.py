"""Sums over a micro-batch that is split among ranks, equal to those of a single process.

Strategies average gradients over ranks. In a function of a sum over ranks, the gradient of each rank's own summand is
therefore multiplied by the number of ranks. The average is then the gradient of that function.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_sparse.attention.edges import EdgeCounts

Reduce = Callable[[Tensor], Tensor]
"""The sum of a tensor over all ranks."""


def over_ranks(
    edges: EdgeCounts, tokens: Int[Tensor, ""], ranks: int, reduce: Reduce
) -> tuple[EdgeCounts, Float[Tensor, ""]]:
    """Edge counts of all ranks together, and the mean number of scored tokens per rank.

    The gradient, averaged over ranks, is that of a single process. It takes one all-reduce, in which all ranks must
    take part.

    Args:
        edges: edge counts of this rank.
        tokens: number of tokens that are scored on this rank.
    """
    if ranks == 1:
        return edges, tokens.float()
    own = torch.stack([counts.double() for counts in edges])
    total = reduce(torch.cat([own.detach().flatten(), tokens.double()[None]]))
    sums = total[:-1].view_as(own).float()
    return EdgeCounts(_with_gradient(sums[0], edges.expected, ranks), sums[1], sums[2]), total[-1].float() / ranks


def _with_gradient(
    total: Float[Tensor, "layer head"], own: Float[Tensor, "layer head"], ranks: int
) -> Float[Tensor, "layer head"]:
    return total + ranks * (own - own.detach())
