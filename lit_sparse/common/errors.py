"""Errors that end a run, with advice on what to do."""

import math
import signal
from pathlib import Path


class NonFiniteLossError(RuntimeError):
    """The training loss, or its gradient, became NaN or infinite. No checkpoint has been written since."""

    def __init__(self, step: int, loss: float, ce: float | None = None):
        entropy = "" if ce is None else f" (cross-entropy {ce})"
        if math.isfinite(loss):
            what = f"the loss of {loss} at step {step}{entropy} has gradients that are NaN or infinite"
            remedy = (
                "Resume from it with a lower learning rate, and look for a function of your own (a constraint, an edge "
                "objective) without a finite derivative, such as a square root at 0."
            )
        else:
            what = f"the loss became {loss} at step {step}{entropy}"
            remedy = "Resume from it with a lower learning rate, or clip gradients (trainer.gradient_clip_val)."
        super().__init__(
            f"{what}; training stopped, nothing has been saved since, and the last checkpoint on disk is good. {remedy}"
        )


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; earlier ones are untouched."""


class Interrupted(RuntimeError):
    """A signal ended the run at a step boundary, with a checkpoint.

    Attributes:
        number: number of the signal.
    """

    def __init__(self, number: int, step: int, checkpoint: Path):
        self.number = number
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}; to continue, run the same command with "
            f"--on_existing resume (checkpoint: {checkpoint})"
        )
