"""Constraints on a model's quality while edges are removed: `value <= tolerance` should hold.

A constraint turns the losses of scored tokens into one number per token. The mean over tokens is the constraint's
value. A new constraint is a subclass; a config names it by its class path.
"""

import math
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from lit_sparse.objective.losses import TokenLosses

Value = TypeVar("Value", float, Tensor)
_MIN_SCALE = 1e-3  # nats: a tau equal to the base loss must not make every violation infinite


class Constraint:
    """`mean(per_token(losses)) <= tolerance`.

    Args:
        tolerance: the largest mean that counts as satisfied, in nats per token.
    """

    name = ""

    def __init__(self, tolerance: float):
        if not (tolerance > 0 and math.isfinite(tolerance)):
            raise ValueError(f"the constraint's tolerance must be a positive number, got {tolerance}")
        self.tolerance = tolerance
        self.scale = tolerance
        """Unit in which a violation is measured, in nats per token."""

    def violation(self, value: Value) -> Value:
        """Distance of a value from the tolerance, relative to `scale`: > 0 is violated, < 0 is slack."""
        return (value - self.tolerance) / self.scale

    def per_token(self, losses: TokenLosses) -> Float[Tensor, "batch query"]:
        """The constrained quantity of each token, differentiable in the model's logits. Values at tokens that are not
        scored do not count."""
        raise TypeError(f"{type(self).__name__} must implement per_token()")

    def described(self) -> str:
        """The constraint in words, such as "cross-entropy <= 2.5 nats per token"."""
        return f"{self.name or type(self).__name__} <= {self.tolerance:g} nats per token"

    def tolerance_for(self, base_ce: float) -> float:
        """The tolerance on text on which the base model's cross-entropy is `base_ce` (nats per token).

        A constraint whose `prepare` measures its tolerance overrides this too.
        """
        return self.tolerance

    def state_dict(self) -> dict[str, float]:
        """Values that `prepare` measured, so that a resumed run keeps them."""
        return {"tolerance": self.tolerance, "scale": self.scale}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.tolerance, self.scale = state["tolerance"], state["scale"]

    def prepare(self, base_ce: float) -> None:
        """Sets the tolerance from the base model, once before training.

        Args:
            base_ce: the base model's cross-entropy on the validation split (nats per token), the split that model
                selection uses. It is measured only for constraints that override this method.

        Raises:
            ValueError: a model as good as the base cannot meet the tolerance.
        """


class Paired(Constraint):
    """CE minus the base model's CE on the same tokens. Its variance is small even with small batches."""

    name = "paired"

    def described(self) -> str:
        return f"cross-entropy - the base model's on the same tokens <= {self.tolerance:g} nats per token"

    def per_token(self, losses: TokenLosses) -> Float[Tensor, "batch query"]:
        return losses.ce - losses.base_ce


class KL(Constraint):
    """KL(base || sparse). It does not become slack when training on a narrow corpus lowers the loss itself."""

    name = "kl"

    def described(self) -> str:
        return f"KL divergence from the base model <= {self.tolerance:g} nats per token"

    def per_token(self, losses: TokenLosses) -> Float[Tensor, "batch query"]:
        return losses.kl


class Absolute(Constraint):
    """CE <= tau, the paper's constraint (arXiv 2512.05865, eq. of the GECO objective).

    Args:
        tau: nats per token; None means the base model's CE + epsilon, measured on the validation split at the start.
        epsilon: allowed rise over the base model's CE, in nats per token; used only if tau is None.
    """

    name = "absolute"

    def __init__(self, tau: float | None = None, epsilon: float = 0.05):
        super().__init__(epsilon if tau is None else tau)
        if not epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {epsilon}")
        self._measured = tau is None
        self.epsilon = epsilon

    def per_token(self, losses: TokenLosses) -> Float[Tensor, "batch query"]:
        return losses.ce

    def described(self) -> str:
        limit = f"the base model's + {self.epsilon:g}" if self._measured else f"{self.tolerance:g}"
        return f"cross-entropy <= {limit} nats per token"

    def tolerance_for(self, base_ce: float) -> float:
        return base_ce + self.epsilon if self._measured else self.tolerance

    def prepare(self, base_ce: float) -> None:
        self.tolerance = self.tolerance_for(base_ce)
        if self.tolerance < base_ce:
            raise ValueError(
                f"tau = {self.tolerance:.4f} is below the base model's own held-out loss of {base_ce:.4f} nats per "
                f"token, which removing edges will not improve; set tau >= {base_ce:.4f}, or leave it out and set "
                "epsilon"
            )
        self.scale = max(self.tolerance - base_ce, _MIN_SCALE)
