"""The learning rate over a run: warm-up, then a linear decay."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupDecay(LambdaLR):
    """Every group's rate rises linearly over `warmup_steps`, then falls linearly to nothing at `total_steps`.

    The noise of a high rate costs divergence from the base model; as the rate falls, that turns into edges.

    Args:
        total_steps: optimizer steps of the run: `trainer.max_steps`.
        warmup_steps: Adam's first steps would leave the base model's basin.

    Raises:
        ValueError: no step is left after the warm-up.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 20):
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(f"warmup_steps must lie in [0, total_steps), got {warmup_steps} of {total_steps}")

        def factor(step: int) -> float:
            rising = (step + 1) / (warmup_steps + 1)
            return max(0.0, min(rising, (total_steps - step) / (total_steps - warmup_steps)))

        super().__init__(optimizer, factor)
