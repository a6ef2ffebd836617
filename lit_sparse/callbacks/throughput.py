"""Tokens per second and model-FLOP utilisation."""

import time
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_sparse.costs.flops import flops_of_model


class Throughput(Callback):
    """Logs `train/tokens_per_second` over all ranks, averaged over the last steps (validation left out), and, where the
    device's peak is known, `train/mfu`.

    Model-FLOP utilisation is the operations that the method asks for, the base model's forward pass included
    (`costs.flops`), over what the devices could do (PaLM, arXiv 2204.02311, appendix B). What activation checkpointing
    computes again does not count.

    Args:
        smoothing: weight of the past in the running average.
        peak_flops: operations per second of one device; None asks Lightning, which knows NVIDIA's and Google's.
    """

    def __init__(self, smoothing: float = 0.8, peak_flops: float | None = None):
        if peak_flops is not None and not peak_flops > 0:
            raise ValueError(f"peak_flops must be positive, got {peak_flops}")
        self.smoothing = smoothing
        self.peak_flops = peak_flops
        self._peak: float | None = None
        self._flops: dict[int, float] = {}  # per token, by sequence length
        self._started = 0.0
        self._seconds_per_token: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counted = hasattr(getattr(pl_module, "model", None), "get_output_embeddings")  # else no transformers model
        if counted:
            self._peak = self.peak_flops or _known_peak(pl_module.device, str(trainer.precision))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ids = batch["input_ids"]
        now = (time.perf_counter() - self._started) / (ids.numel() * trainer.world_size)
        past = now if self._seconds_per_token is None else self._seconds_per_token
        self._seconds_per_token = self.smoothing * past + (1 - self.smoothing) * now
        pl_module.log("train/tokens_per_second", 1.0 / self._seconds_per_token)
        if self._peak is not None:
            used = self._flops_per_token(pl_module, ids.shape[1]) / self._seconds_per_token
            pl_module.log("train/mfu", used / (self._peak * trainer.world_size))

    def _flops_per_token(self, pl_module: Any, length: int) -> float:
        if length not in self._flops:
            # A dense run has no base model beside it.
            flops = flops_of_model(pl_module.model, length, teacher=hasattr(type(pl_module), "base_logits"))
            self._flops[length] = flops.model
        return self._flops[length]


def _known_peak(device: torch.device, precision: str) -> float | None:
    """Operations per second of matrix products in this precision, None for a device that Lightning does not know."""
    if device.type != "cuda":
        return None
    half = torch.bfloat16 if precision.startswith("bf16") else torch.float16
    known = get_available_flops(device, torch.float32 if precision.startswith("32") else half)
    return None if known is None else float(known)
