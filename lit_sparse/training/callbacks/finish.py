"""Callback for the end of a run."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class FinishRun(Callback):
    """Calls the module's `finish(run_dir)` after training, which writes the result of the run. It does not call it
    after an error or a signal.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        module.check_finish()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        module.finish(self.run_dir)
