"""Rankings of edges by a score, and the behaviour that the best k edges keep. Learnt masks are compared with them.

A score is the metric's loss to first order when an edge is switched off: the metric's gradient in the switch, with all
edges on. `Passes.off` says what a switched-off edge passes. With "corrupted" the score is attribution patching (Nanda
2023; probably the published protocol, arXiv 2512.05865), with "zero" it is gradient x activation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_sparse.circuits.attention_edges.edges import EdgeList
from lit_sparse.circuits.attention_edges.minimal import Ablations
from lit_sparse.circuits.attention_edges.passes import Passes

_FACTOR = 2.0  # between the sizes that are tried first
_PRECISION = 0.04  # of a crossing's size


def gradient_scores(
    passes: Passes, edges: EdgeList, metric: Callable[[Tensor], Float[Tensor, "sample batch"]]
) -> Float[Tensor, " edge"]:
    """Signed first-order loss of the metric when each edge alone is switched off."""
    switches = torch.ones(1, len(edges), device=passes.ids.device, requires_grad=True)
    (gradient,) = torch.autograd.grad(metric(passes.logits(edges.switches(switches))).sum(), switches)
    return gradient[0]


@dataclass(frozen=True)
class Crossing:
    """Numbers of the best edges that meet a goal.

    first: the smallest size tried that meets it.
    last: the smallest size from which on all sizes tried meet it; None if all edges together do not.
    sizes, losses: the sizes tried and their losses.
    """

    first: int | None
    last: int | None
    sizes: list[int]
    losses: list[float]

    def area(self) -> float:
        """Mean of 1 - loss, clipped to [0, 1], over the logarithm of the size. It is 1 if one edge is enough."""
        sizes = torch.tensor(self.sizes, dtype=torch.float64).clamp_min(1).log()
        kept = (1 - torch.tensor(self.losses, dtype=torch.float64)).clamp(0, 1)
        return float(torch.trapezoid(kept, sizes) / (sizes[-1] - sizes[0]).clamp_min(1e-9))


def crossing(ablations: Ablations, order: Int[Tensor, " edge"], tolerance: float) -> Crossing:
    """Real ablations of all but the best edges of an order, at sizes a factor of two apart and closer together at the
    crossings."""
    total = len(order)
    rank = torch.empty(total, dtype=torch.int64, device=order.device)
    rank[order] = torch.arange(total, device=order.device)
    found: dict[int, float] = {}

    def measure(sizes: Sequence[int]) -> None:
        new = sorted(set(sizes) - set(found))
        if new:
            limit = torch.tensor(new, device=order.device)[:, None]
            found.update(zip(new, ablations.losses(rank < limit).tolist(), strict=True))

    measure([min(total, round(_FACTOR**step)) for step in range(total.bit_length() + 1)] + [0, total])
    for _ in range(6):
        new: list[int] = []
        for low, high in _brackets(found, tolerance):
            if high - low > max(1, _PRECISION * high):
                new += [low + (high - low) * part // 4 for part in (1, 2, 3)]
        if not set(new) - set(found):
            break
        measure(new)
    sizes = sorted(found)
    fits = [size for size in sizes if found[size] <= tolerance]
    short = [size for size in sizes if found[size] > tolerance]
    last = next((size for size in sizes if not short or size > short[-1]), None)
    return Crossing(fits[0] if fits else None, last, sizes, [found[size] for size in sizes])


def _brackets(found: dict[int, float], tolerance: float) -> list[tuple[int, int]]:
    """Sizes around the first crossing and the last one."""
    sizes = sorted(found)
    crossings = [(low, high) for low, high in pairwise(sizes) if found[low] > tolerance >= found[high]]
    return [crossings[0], crossings[-1]] if crossings else []
