"""Which checkpoints a run keeps: the right one as best, and the last at a whole step."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_sparse.training.checkpoint_io import BEST, LAST


def checkpoint_callbacks(run_dir: Path) -> list[ModelCheckpoint]:
    """`best.ckpt`: weights of the sparsest model that satisfies the constraint on held-out data, and is as exact as the
    run asks for (`val/score`).
    `last.ckpt`: everything that resuming needs, after each validation."""
    folder = run_dir / "checkpoints"
    best = ModelCheckpoint(
        dirpath=folder,
        filename=Path(BEST).stem,
        monitor="val/score",
        mode="min",
        save_weights_only=True,
        enable_version_counter=False,
    )
    last = StepBoundaryCheckpoint(
        dirpath=folder, filename=Path(LAST).stem, save_on_train_epoch_end=False, enable_version_counter=False
    )
    return [best, last]


class StepBoundaryCheckpoint(ModelCheckpoint):
    """Saves at whole optimizer steps: after a validation between two micro-batches of a step it waits for the step's
    end, because accumulated gradients are not in a checkpoint."""

    _waiting = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._waiting = _within_a_step(trainer)
        if not self._waiting:
            super().on_validation_end(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._waiting and not _within_a_step(trainer):
            self._waiting = False
            super().on_validation_end(trainer, pl_module)


def _within_a_step(trainer: Trainer) -> bool:
    micro_batches = trainer.fit_loop.batch_idx + 1
    return micro_batches % trainer.accumulate_grad_batches != 0 and not trainer.is_last_batch
