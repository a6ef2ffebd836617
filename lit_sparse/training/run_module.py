"""What the modules that train something share: a clock that survives resuming, a schedule, clipping under bfloat16."""

import time

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer

from lit_sparse.training.schedule import WarmupDecay


class RunModule(LightningModule):
    """A LightningModule that knows how long it has trained over all starts of a run.

    Args:
        scheduler: stepped once per optimizer step; None keeps the learning rates.
    """

    def __init__(self, scheduler: LRSchedulerCallable | None):
        super().__init__()
        self.make_scheduler = scheduler
        self._seconds_before = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training so far, validation included, over all starts of the run."""
        return self._seconds_before + (0.0 if self._started is None else time.perf_counter() - self._started)

    def on_train_start(self) -> None:
        self._started = time.perf_counter()

    def on_train_end(self) -> None:
        self._seconds_before, self._started = self.seconds, None

    def scheduled(self, optimizer: Optimizer) -> OptimizerLRScheduler:
        """What `configure_optimizers` returns for this optimizer.

        Raises:
            ValueError: a `WarmupDecay` without `total_steps` in a run without `trainer.max_steps`.
        """
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer)
        if isinstance(scheduler, WarmupDecay) and scheduler.total_steps is None:
            if self.trainer.max_steps < 1:
                raise ValueError("WarmupDecay falls over trainer.max_steps, which is not set: set it, or total_steps")
            scheduler.end_at(self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as Lightning does, fused optimizers under bf16-mixed included.

        Lightning refuses those under any mixed precision because they undo float16's loss scaling themselves;
        bfloat16 has no loss scaling.
        """
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or GradClipAlgorithmType.NORM)
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
