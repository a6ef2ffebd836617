"""The constrained objective in one object: edge objective, constraint, and the multiplier between the two.

    loss = (edge objective + lambda * constraint + distillation * KL) / (1 + lambda)

After every optimizer step, lambda follows the constraint's mean over all micro-batches and ranks of that step
(arXiv 2512.05865, section 3, with the controllers of `multiplier`).
"""

import math
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_sparse.attention.edges import EdgeCounts
from lit_sparse.objective.constraint import KL, Constraint
from lit_sparse.objective.edges import EdgeObjective, LogEdgeFraction
from lit_sparse.objective.losses import TokenLosses
from lit_sparse.objective.multiplier import Geco, Multiplier
from lit_sparse.objective.ranks import Reduce

Scalar = Float[Tensor, ""]


@final
class Lagrangian:
    """Minimises edges under a constraint.

    Args:
        constraint: the constraint that must hold while edges are removed; None means KL <= 0.1 nats per token.
        edges: the edge objective to minimise; None means the log of the edge fraction.
        multiplier: the controller by which lambda follows the constraint; None means GECO.
        margin: lambda aims this far below the tolerance, as a share of the constraint's scale, so that held-out text
            satisfies it although training text fluctuates. Model selection uses the tolerance itself.
        relaxation: factor of the tolerance at the start. The tolerance that lambda follows falls geometrically to the
            constraint's own over the run, so it is loose while edges are re-routed and tight at the end. 1 keeps it.
        distillation: weight of an additional KL(base || sparse) term; 0 means none.

    Raises:
        ValueError: a number is outside its range.
    """

    def __init__(
        self,
        constraint: Constraint | None = None,
        edges: EdgeObjective | None = None,
        multiplier: Multiplier | None = None,
        margin: float = 0.0,
        relaxation: float = 1.0,
        distillation: float = 0.0,
    ):
        if not 0 <= margin < 1:
            raise ValueError(f"margin is a share in [0, 1), got {margin}")
        if not 1 <= relaxation < math.inf:
            raise ValueError(f"relaxation multiplies the tolerance at the start, so it is at least 1, got {relaxation}")
        if not 0 <= distillation < math.inf:
            raise ValueError(f"distillation must not be negative, got {distillation}")
        self.constraint = constraint or KL(tolerance=0.1)
        self.edges = edges or LogEdgeFraction()
        self.multiplier = multiplier or Geco()
        self.margin = margin
        self.relaxation = relaxation
        self.distillation = distillation
        self._window: list[Tensor] = []  # per micro-batch since the last step: the constraint's sum, tokens
        self._steps = 0

    @property
    def follows_progress(self) -> bool:
        """True if the tolerance depends on the share of the run that is over."""
        return self.relaxation > 1

    def weight(self, device: torch.device) -> Scalar:
        """lambda on a device, so that a step there reads it without waiting."""
        return self.multiplier.to(device).value

    def per_token(self, losses: TokenLosses) -> Float[Tensor, "batch query"]:
        """The constrained quantity of each token; only scored ones count."""
        return self.constraint.per_token(losses)

    def edge_loss(self, edges: EdgeCounts) -> Scalar:
        """The edge objective of one micro-batch over all ranks."""
        return self.edges(edges)

    def loss(self, edges: Scalar, value: Scalar, kl: Scalar, weight: Scalar) -> Scalar:
        """A micro-batch's loss.

        Args:
            edges: the edge objective.
            value: the constraint's mean over tokens.
            kl: KL(base || sparse), its mean over tokens.
            weight: lambda, as `weight` gives it.
        """
        sum_of_weights = (1 + weight).to(value.dtype)
        loss = (edges + weight.to(value.dtype) * value) / sum_of_weights
        if self.distillation:
            loss = loss + self.distillation * kl / sum_of_weights
        return loss

    def observe(self, total: Scalar, tokens: Int[Tensor, ""]) -> None:
        """Records a micro-batch of this rank: the constraint's sum over its scored tokens, and their number."""
        self._window.append(torch.stack([total.detach(), tokens]).to(self.multiplier.log_value.dtype))

    def step(self, steps: int, progress: float, reduce: Reduce) -> bool:
        """Moves lambda if an optimizer step has ended since the last call; returns True if one has. All ranks call it.

        Args:
            steps: optimizer steps so far. Strategies differ in how often their hooks fire, so several calls per step
                are allowed.
            progress: share of the run that is over.
            reduce: sums over ranks.
        """
        if not self._window or steps == self._steps:
            return False
        self._steps = steps
        total, tokens = reduce(torch.stack(self._window).sum(dim=0))
        self._window.clear()
        violation = self.constraint.violation(total / tokens) + self.margin
        if self.relaxation > 1:
            looser = self.relaxation ** (1.0 - progress)
            violation = (violation + 1.0) / looser - 1.0
        self.multiplier.update(violation)
        return True

    def state_dict(self) -> dict[str, Any]:
        return {
            "multiplier": self.multiplier.state_dict(),
            "constraint": self.constraint.state_dict(),
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.multiplier.load_state_dict(state["multiplier"])
        self.constraint.load_state_dict(state["constraint"])
        self._steps = int(state["steps"])
        self._window.clear()
