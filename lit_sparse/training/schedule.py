"""Learning rate over a run: warm-up, then a linear decay."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupDecay(LambdaLR):
    """Schedule in which every group's rate rises linearly over `warmup_steps`, then falls linearly to 0 at
    `total_steps`.

    The noise of a high rate costs divergence from the base model. As the rate falls, more edges can close instead.

    Args:
        total_steps: number of optimizer steps of the run. None means `trainer.max_steps`, which `RunModule.scheduled`
            sets.
        warmup_steps: number of warm-up steps. Without them, Adam's first steps leave the base model's basin.

    Raises:
        ValueError: no step is left after the warm-up.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int | None = None, warmup_steps: int = 20):
        if not 0 <= warmup_steps < (math.inf if total_steps is None else total_steps):
            raise ValueError(f"warmup_steps must lie in [0, total_steps), got {warmup_steps} of {total_steps}")
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        super().__init__(optimizer, lambda step: self._factor(step))

    def end_at(self, total_steps: int) -> None:
        """Moves the end of a run that has begun. Rates follow from the next step on. An end within the warm-up shortens
        the warm-up."""
        self.total_steps = total_steps
        self.warmup_steps = min(self.warmup_steps, total_steps - 1)

    def _factor(self, step: int) -> float:
        rising = (step + 1) / (self.warmup_steps + 1)
        if self.total_steps is None:
            if step > 0:
                raise ValueError("WarmupDecay does not know when the run ends: set its total_steps, or call end_at")
            return rising
        return max(0.0, min(rising, (self.total_steps - step) / (self.total_steps - self.warmup_steps)))

    def state_dict(self) -> dict[str, Any]:
        """State without the schedule's form, which the config or a callback sets: a run may be resumed with more
        steps."""
        return {key: value for key, value in super().state_dict().items() if key not in ("total_steps", "warmup_steps")}
