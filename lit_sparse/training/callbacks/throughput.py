"""Tokens per second and model-FLOP utilisation."""

import time
from collections import deque
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_sparse.costs.flops import flops_of_model

# Operations per second of an H200 SXM's matrix products, equal to an H100 SXM's (NVIDIA's data sheet, without
# sparsity). Lightning (2.6) does not know this GPU by the name that the driver gives.
_H200 = {torch.bfloat16: 989.4e12, torch.float16: 989.4e12, "tfloat32": 494.7e12, torch.float32: 66.9e12}


@runtime_checkable
class Mark(Protocol):
    """A moment in a device's work, such as a `torch.cuda.Event`."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end: Any) -> float: ...


class ClockMark:
    """A moment on the CPU, whose work is done when the call returns."""

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "ClockMark") -> float:
        """Milliseconds from this mark to another."""
        return 1e3 * (end.seconds - self.seconds)


class Throughput(Callback):
    """Logs `train/tokens_per_second` over all ranks, averaged over the last steps (without validation), and `train/mfu`
    if the device's peak is known.

    A GPU runs behind the program that gives it work, so the GPU's own clock is used. Events before and after each
    micro-batch are read when the GPU has passed them. Nothing waits, and the first numbers come some steps late.

    Model-FLOP utilisation is the operations that the method needs, with the base model's forward pass (`costs.flops`),
    over the operations that the devices could do (PaLM, arXiv 2204.02311, appendix B). Operations that activation
    checkpointing repeats do not count.

    Args:
        smoothing: weight of the past in the running average.
        peak_flops: operations per second of one device; None takes Lightning's table of NVIDIA's and Google's devices.

    Raises:
        ValueError: peak_flops is not positive.
    """

    def __init__(self, smoothing: float = 0.8, peak_flops: float | None = None):
        if peak_flops is not None and not peak_flops > 0:
            raise ValueError(f"peak_flops must be positive, got {peak_flops}")
        self.smoothing = smoothing
        self.peak_flops = peak_flops
        self._peak: float | None = None
        self._flops: dict[int, float] = {}  # per token, by sequence length
        self._started: Mark | None = None
        self._running: deque[tuple[Mark, Mark, int, int]] = deque()  # start, end, tokens, sequence length
        self._seconds_per_token: float | None = None
        self._length = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counted = hasattr(getattr(pl_module, "model", None), "get_output_embeddings")  # else no transformers model
        if counted:
            self._peak = self.peak_flops or _known_peak(pl_module.device, str(trainer.precision))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._started = _mark(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ids = batch["input_ids"]
        assert self._started is not None
        self._running.append((self._started, _mark(pl_module.device), ids.numel() * trainer.world_size, ids.shape[-1]))
        self._read()
        if self._seconds_per_token is None:
            return
        values = {"train/tokens_per_second": 1.0 / self._seconds_per_token}
        if self._peak is not None:
            used = self._flops_per_token(pl_module, self._length) / self._seconds_per_token
            values["train/mfu"] = used / (self._peak * trainer.world_size)
        # As tensors: logging a float copies it to the device and waits.
        pl_module.log_dict({name: torch.tensor(value) for name, value in values.items()})

    def _read(self) -> None:
        """Adds finished micro-batches to the average."""
        while self._running and self._running[0][1].query():
            start, end, tokens, self._length = self._running.popleft()
            now = start.elapsed_time(end) / 1e3 / tokens
            past = now if self._seconds_per_token is None else self._seconds_per_token
            self._seconds_per_token = self.smoothing * past + (1 - self.smoothing) * now

    def _flops_per_token(self, pl_module: Any, length: int) -> float:
        if length not in self._flops:
            # A dense run has no base model beside it.
            flops = flops_of_model(pl_module.model, length, teacher=hasattr(type(pl_module), "base_logits"))
            self._flops[length] = flops.model
        return self._flops[length]


def _mark(device: torch.device) -> Mark:
    mark: Mark = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else ClockMark()
    mark.record()
    return mark


def _known_peak(device: torch.device, precision: str) -> float | None:
    """Operations per second of matrix products in this precision; None for an unknown device."""
    if device.type != "cuda":
        return None
    half = torch.bfloat16 if precision.startswith("bf16") else torch.float16
    kind = torch.float32 if precision.startswith("32") else half
    if torch.cuda.get_device_name(device) == "NVIDIA H200":
        tensor_cores = kind is torch.float32 and torch.get_float32_matmul_precision() != "highest"
        return _H200["tfloat32" if tensor_cores else kind]
    known = get_available_flops(device, kind)
    return None if known is None else float(known)
