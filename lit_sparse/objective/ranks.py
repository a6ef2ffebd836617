"""What ranks have in common: sums over a micro-batch that is split among them, as one process would see it.

Strategies average gradients over ranks. A function of a sum over ranks therefore needs each rank's own summand with as
many times its gradient as there are ranks: the average is then the gradient of the function of the sum.
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
    """The edges of all ranks, whose averaged gradient is that of a single process, and how many tokens are scored on a
    rank on average. One all-reduce, which all ranks must take part in.

    Args:
        edges: of this rank.
        tokens: that are scored on this rank.
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
