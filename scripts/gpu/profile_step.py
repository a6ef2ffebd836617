"""One training step under torch.profiler: the kernels that take longest, how many are launched, and how busy they keep
the device."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

ROWS = 25


class ProfiledStep(Callback):
    """Profiles the step after `warmup` others, then stops the run."""

    def __init__(self, warmup: int = 4):
        self.warmup = warmup
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self.profiler = torch.profiler.profile(activities=activities)
        self.seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.warmup:
            _drain()
            self.profiler.start()
            self.seconds = -time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.warmup:
            _drain()
            self.seconds += time.perf_counter()
            self.profiler.stop()
            trainer.should_stop = True


def profiled(train: Callable[[Callback], Any], out: Path) -> dict[str, Any]:
    """The step of a run that `train` begins with a callback; the table goes to `out/profile.txt`."""
    step = ProfiledStep()
    train(step)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    averages = step.profiler.key_averages()
    table = averages.table(sort_by=f"self_{device}_time_total", row_limit=ROWS, max_name_column_width=90)
    (out / "profile.txt").write_text(table)
    # Annotations of the host, such as the optimizer's step, are drawn on the device too.
    on_device = (event for event in step.profiler.events() if event.device_type == DeviceType.CUDA)
    kernels = [event for event in on_device if not event.is_user_annotation]
    spans = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    busy = covered(spans)
    window = spans[-1][1] - spans[0][0] if spans else 0.0
    return {
        "step_seconds": step.seconds,
        "operations": sum(entry.count for entry in averages if entry.key.startswith("aten::")),
        "device_launches": len(kernels),
        "device_busy_seconds": busy / 1e6,
        "device_busy_share": busy / window if window else None,
        "synchronisations": sum(entry.count for entry in averages if "Synchronize" in entry.key),
    }


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals that are sorted by their start."""
    total, end = 0.0, float("-inf")
    for first, last in spans:
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def _drain() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
