"""Errors that end a run, with what to do about them."""

import signal
from pathlib import Path


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite. No checkpoint has been written since."""

    def __init__(self, step: int, loss: float, ce: float | None = None):
        entropy = "" if ce is None else f" (cross-entropy {ce})"
        super().__init__(
            f"the loss became {loss} at step {step}{entropy}; training stopped, nothing has been "
            "saved since, and the last checkpoint on disk is good. Resume from it with a lower learning rate, or clip "
            "gradients (trainer.gradient_clip_val)."
        )


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; earlier ones are untouched."""


class Interrupted(RuntimeError):
    """A signal ended the run at a step boundary, with a checkpoint.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, step: int, checkpoint: Path):
        self.number = number
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}; to go on, run the same command with "
            f"--on_existing resume (checkpoint: {checkpoint})"
        )
