"""A run that ends after a given time, with its schedule fitted to the measured speed."""

import time
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_sparse.training.schedule import WarmupDecay


class TimeBudget(Callback):
    """Chooses the number of a run's steps from a time budget.

    After a few measured steps, `trainer.max_steps` and the `WarmupDecay` schedule's `total_steps` are set to the number
    of steps that fits into the rest of the time, with validations. Later they are fitted again. At the last step the
    learning rates reach 0, and sharpness and relaxation, which follow `trainer.max_steps`, reach their ends. The run
    stops there, or else at the deadline, with a validation and its checkpoints. A resumed run has the rest of its
    budget.

    Args:
        seconds: time from the creation of this callback, so that reading text and compiling count, to the end of
            training.
        warmup_steps: number of steps before the measured ones, in which the model compiles.
        measured_steps: number of steps from which the schedule is first fitted.
        refits: shares of `seconds` after which the schedule is fitted again.

    Raises:
        ValueError: the time or the steps are not positive, or shares are not between 0 and 1.
        MisconfigurationException: there is more than one process, or the run has no last step that could be moved.
    """

    def __init__(
        self, seconds: float, warmup_steps: int = 20, measured_steps: int = 20, refits: tuple[float, ...] = (0.3, 0.6)
    ):
        if not seconds > 0 or warmup_steps < 0 or measured_steps < 1:
            raise ValueError("seconds and measured_steps must be positive, and warmup_steps not negative")
        if not all(0 < share < 1 for share in refits):
            raise ValueError(f"refits are shares of the time between 0 and 1, got {refits}")
        self.seconds = seconds
        self.warmup_steps = warmup_steps
        self.measured_steps = measured_steps
        self.refits = tuple(sorted(refits))
        self.total_steps: int | None = None
        self._made = self._now()
        self._used_before = 0.0
        self._steps = 0  # since this start
        self._measured_from: tuple[int, float] | None = None  # step and clock, since the last fit
        self._validated_since = 0.0  # seconds of validations since then
        self._validations: list[float] = []  # seconds of each
        self._validation_began = 0.0
        self._fitted = 0  # number of fits

    @property
    def used(self) -> float:
        """Seconds of the budget that are over, with earlier starts of the run."""
        return self._used_before + self._now() - self._made

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            raise MisconfigurationException("TimeBudget is for runs of one process: others would stop at other steps")
        if trainer.max_steps < 1:
            raise MisconfigurationException("TimeBudget moves trainer.max_steps: set it to a number never reached")
        if self.total_steps is not None:
            self._set_end(trainer, self.total_steps)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fast_dev_run or not _at_step_end(trainer):  # type: ignore[attr-defined]
            return
        self._steps += 1
        if self._steps == self.warmup_steps or (self.warmup_steps == 0 and self._measured_from is None):
            self._measure_from_here(trainer, pl_module)
        elif self._is_time_to_fit():
            _drain(pl_module)
            self._fit(trainer)
            self._measure_from_here(trainer, pl_module)
        if trainer.global_step >= trainer.max_steps or self.used >= self.seconds:
            trainer.should_stop = True  # at the end of the schedule too: Lightning then validates, at any step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _drain(pl_module)
        self._validation_began = self._now()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _drain(pl_module)
        self._validations.append(self._now() - self._validation_began)
        self._validated_since += self._validations[-1]

    def _measure_from_here(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _drain(pl_module)
        self._measured_from = trainer.global_step, self._now()
        self._validated_since = 0.0

    def _is_time_to_fit(self) -> bool:
        if self._measured_from is None:
            return False
        if self._fitted == 0:
            return self._steps >= self.warmup_steps + self.measured_steps
        due = self.refits[self._fitted - 1 :]
        return bool(due) and self.used >= due[0] * self.seconds

    def _fit(self, trainer: Trainer) -> None:
        assert self._measured_from is not None
        first, began = self._measured_from
        step = (self._now() - began - self._validated_since) / (trainer.global_step - first)
        interval = _validation_interval(trainer)
        validation = sum(self._validations) / max(len(self._validations), 1)
        left = self.seconds - self.used - validation  # the last one comes after the last step
        steps = int(max(left, 0.0) / (step + validation / interval))
        self._fitted += 1
        while self._fitted <= len(self.refits) and self.used >= self.refits[self._fitted - 1] * self.seconds:
            self._fitted += 1
        self._set_end(trainer, trainer.global_step + max(steps, 1))
        rank_zero_info(f"{step:.3f} s a step: the run ends at step {self.total_steps}")

    def _set_end(self, trainer: Trainer, total_steps: int) -> None:
        self.total_steps = total_steps
        trainer.fit_loop.epoch_loop.max_steps = total_steps
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, WarmupDecay):
                config.scheduler.end_at(total_steps)

    def state_dict(self) -> dict[str, Any]:
        return {"total_steps": self.total_steps, "used": self.used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total_steps = state_dict["total_steps"]
        self._used_before = float(state_dict["used"])

    @staticmethod
    def _now() -> float:
        return time.perf_counter()


def _drain(pl_module: LightningModule) -> None:
    """Waits for a GPU's work. Operations end after the calls that begin them, so a clock would be read too early."""
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize(pl_module.device)


def _at_step_end(trainer: Trainer) -> bool:
    return (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def _validation_interval(trainer: Trainer) -> float:
    """Number of steps between validations."""
    batches = float(trainer.val_check_batch or "inf")
    return batches / trainer.accumulate_grad_batches
