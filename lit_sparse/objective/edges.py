"""The edge objective: a differentiable number that falls as gates close. Subclass `EdgeObjective` for your own.

It gets the edge counts of a micro-batch summed over all ranks, so it may be any function of them.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lit_sparse.attention.edges import EdgeCounts


class EdgeObjective:
    """Maps a micro-batch's edge counts to the number that is minimised.

    Args:
        weight: factor of the objective, relative to the constraint.
    """

    def __init__(self, weight: float = 1.0):
        if not weight > 0:
            raise ValueError(f"the edge objective's weight must be positive, got {weight}")
        self.weight = weight

    def __call__(self, edges: EdgeCounts) -> Float[Tensor, ""]:
        raise TypeError(f"{type(self).__name__} must implement __call__()")


class EdgeFraction(EdgeObjective):
    """Expected edge fraction (arXiv 2512.05865). Its gradient fades as edges become few."""

    def __call__(self, edges: EdgeCounts) -> Float[Tensor, ""]:
        return self.weight * edges.expected.sum() / edges.allowed.sum()


class LogEdgeFraction(EdgeObjective):
    """Log of the expected edge fraction. Removing half of the remaining edges is always worth the same."""

    def __init__(self, weight: float = 0.1):
        super().__init__(weight)

    def __call__(self, edges: EdgeCounts) -> Float[Tensor, ""]:
        return self.weight * torch.log(edges.expected.sum() / edges.allowed.sum())
