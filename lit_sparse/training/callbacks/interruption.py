"""Interruption of a run by SIGTERM, SIGUSR1 (SLURM's, before the time limit) or Ctrl-C, at a step boundary and with a
checkpoint."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_sparse.common.errors import Interrupted
from lit_sparse.training.checkpoint_io import LAST


class StopAtStepBoundary(Callback):
    """Finishes the step on SIGTERM, SIGUSR1 or SIGINT, writes `last.ckpt` and raises `Interrupted` on all ranks.

    Ranks agree by an all-reduce at each step, so that one signalled rank stops all. A second SIGINT stops at once.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: Path):
        self.path = run_dir / "checkpoints" / LAST
        self._received: int | None = None
        self._previous: dict[int, Any] = {}
        self._step = 0
        self._ending: Interrupted | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            # Replaces Lightning's own handlers, which would raise, or requeue, between micro-batches.
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._received = number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        received = self._received or 0
        if trainer.world_size > 1:
            flag = torch.tensor(received, device=pl_module.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            received = int(flag)
        if received:
            trainer.save_checkpoint(self.path)
            self._ending = Interrupted(received, trainer.global_step, self.path)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._ending is not None:  # by now the last step's metrics are in the logs
            raise self._ending

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
