"""What the modules that train something share: their run, its callbacks, a schedule, clipping under bfloat16."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer

from lit_sparse.training.callbacks.run import run_callbacks
from lit_sparse.training.pace import Pace
from lit_sparse.training.run_data import RunData
from lit_sparse.training.schedule import WarmupDecay
from lit_sparse.training.state import RunState


class RunModule(LightningModule):
    """A LightningModule with the state of its run. A subclass may set `legend`, a line of at most 80 columns on the
    units of the figures that training shows.

    Args:
        state: of the run.
        scheduler: stepped once per optimizer step; None keeps the learning rates.
    """

    legend = ""

    def __init__(self, state: RunState, scheduler: LRSchedulerCallable | None):
        super().__init__()
        self.state = state
        self.make_scheduler = scheduler
        self.pace = Pace()
        """How fast the run works, for an estimate of its end."""

    @property
    def data(self) -> Any:
        """The data module of this run; None without one."""
        return getattr(self._trainer, "datamodule", None)

    @property
    def run_data(self) -> RunData:
        """Text to calibrate on and to report on, whatever the data module."""
        return RunData(self.trainer)

    @property
    def precision(self) -> str:
        return "32-true" if self._trainer is None else str(self._trainer.precision)

    @property
    def progress(self) -> float:
        """The share of the run's steps that are over; 0 where it has no last step."""
        if self._trainer is None or self.trainer.max_steps < 1:
            return 0.0
        return self.trainer.global_step / self.trainer.max_steps

    @property
    def run_dir(self) -> Path:
        """Where the run is written to: the trainer's `default_root_dir`, and `runs/default` where it has none of its
        own."""
        root = Path(self.trainer.default_root_dir)
        return root / "runs" / "default" if root.resolve() == Path.cwd() else root

    def configure_callbacks(self) -> list[Callback]:
        return run_callbacks(self.trainer, self.run_dir)

    def on_train_start(self) -> None:
        self.state.start_clock()

    def on_train_end(self) -> None:
        self.state.stop_clock()

    def check_finish(self) -> None:
        """Called before training.

        Raises:
            ValueError: `finish` will lack something.
        """

    def finish(self, run_dir: Path) -> None:
        """Writes what the run is for. Called once, after training, with the model's last weights."""

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
