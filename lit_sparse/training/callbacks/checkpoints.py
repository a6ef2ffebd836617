"""Checkpoints that a run keeps: the best one, and the last one at a whole step."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_sparse.training.checkpoint_io import BEST, LAST, AtomicCheckpointIO


class BestCheckpoint(ModelCheckpoint):
    """`checkpoints/best.ckpt`: weights of the sparsest model that satisfies the constraint on held-out data, and has
    the exact match that the run requires (`val/score`).

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: Path):
        super().__init__(
            dirpath=run_dir / "checkpoints",
            filename=Path(BEST).stem,
            monitor="val/score",
            mode="min",
            save_weights_only=True,
            enable_version_counter=False,
        )


class StepBoundaryCheckpoint(ModelCheckpoint):
    """`checkpoints/last.ckpt`: all that resuming needs, after each validation.

    It is saved at whole optimizer steps. After a validation between two micro-batches of a step, it waits for the
    step's end, because accumulated gradients are not in a checkpoint. All checkpoints of the run are written whole or
    not at all (`AtomicCheckpointIO`).

    Args:
        run_dir: the run's folder.

    Raises:
        ValueError: the folder holds the checkpoints of another run, before training.
    """

    _waiting = False

    def __init__(self, run_dir: Path):
        super().__init__(
            dirpath=run_dir / "checkpoints",
            filename=Path(LAST).stem,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Strategies that shard say only later that they resume.
        if trainer.ckpt_path is not None or trainer.strategy.restore_checkpoint_after_setup:
            return
        folder = Path(str(self.dirpath))
        if (folder / LAST).exists():
            raise ValueError(
                f"{folder} holds another run's checkpoints. To continue that run, give fit its {LAST} as ckpt_path; "
                "else choose another default_root_dir, or remove the folder"
            )

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
