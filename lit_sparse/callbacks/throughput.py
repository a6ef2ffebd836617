"""Tokens per second."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs `train/tokens_per_second` over all ranks, averaged over the last steps (validation left out).

    Args:
        smoothing: weight of the past in the running average.
    """

    def __init__(self, smoothing: float = 0.8):
        self.smoothing = smoothing
        self._started = 0.0
        self._seconds_per_token: float | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = (time.perf_counter() - self._started) / (batch["input_ids"].numel() * trainer.world_size)
        past = now if self._seconds_per_token is None else self._seconds_per_token
        self._seconds_per_token = self.smoothing * past + (1 - self.smoothing) * now
        pl_module.log("train/tokens_per_second", 1.0 / self._seconds_per_token)
