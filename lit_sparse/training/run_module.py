"""Base of the modules that train: their run, its callbacks, a schedule, and clipping under bfloat16."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer

from lit_sparse.training.callbacks.run import run_callbacks
from lit_sparse.training.run_data import RunData
from lit_sparse.training.schedule import WarmupDecay
from lit_sparse.training.state import RunState


class RunModule(LightningModule):
    """A LightningModule with the state of its run.

    Args:
        state: state of the run.
        scheduler: stepped once per optimizer step; None keeps the learning rates.
    """

    def __init__(self, state: RunState, scheduler: LRSchedulerCallable | None):
        super().__init__()
        self.state = state
        self.make_scheduler = scheduler

    @property
    def data(self) -> Any:
        """The data module of this run, or None."""
        return getattr(self._trainer, "datamodule", None)

    @property
    def run_data(self) -> RunData:
        """Text for calibration and for the report, from any data module."""
        return RunData(self.trainer)

    @property
    def precision(self) -> str:
        return "32-true" if self._trainer is None else str(self._trainer.precision)

    @property
    def progress(self) -> float:
        """The share of the run's steps that are over; 0 if the run has no last step."""
        if self._trainer is None or self.trainer.max_steps < 1:
            return 0.0
        return self.trainer.global_step / self.trainer.max_steps

    @property
    def run_dir(self) -> Path:
        """The run's folder: the trainer's `default_root_dir`, or `runs/default` if the trainer was given none."""
        root = Path(self.trainer.default_root_dir)
        return root / "runs" / "default" if root.resolve() == Path.cwd() else root

    def configure_callbacks(self) -> list[Callback]:
        return run_callbacks(self.trainer, self.run_dir)

    def on_train_start(self) -> None:
        self.state.start_clock()

    def on_train_end(self) -> None:
        self.state.stop_clock()

    def check_finish(self) -> None:
        """Checks, before training, that `finish` will have all that it needs.

        Raises:
            ValueError: `finish` would lack something.
        """

    def finish(self, run_dir: Path) -> None:
        """Writes the result of the run. It is called once, after training, with the model's last weights."""

    def scheduled(self, optimizer: Optimizer) -> OptimizerLRScheduler:
        """The return value of `configure_optimizers` for this optimizer.

        Raises:
            ValueError: a `WarmupDecay` has no `total_steps`, and the run has no `trainer.max_steps`.
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
        """Clips gradients as Lightning does, also for fused optimizers under bf16-mixed.

        Lightning refuses those under any mixed precision because they undo float16's loss scaling themselves;
        bfloat16 has no loss scaling.
        """
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or GradClipAlgorithmType.NORM)
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
