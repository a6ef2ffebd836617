"""Work that is left in a run and the time it will take, from the trainer and the run's pace."""

import math
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer

from lit_sparse.common.formatting import roughly
from lit_sparse.training.callbacks.time_budget import TimeBudget
from lit_sparse.training.pace import Pace, Work

_REPORT = 10.0
"""Seconds that export, plots and the page take, about."""


class TimeLeft(NamedTuple):
    """Seconds until the run ends, and what they are for."""

    steps: float  # number of optimizer steps; infinite where the run has no last one
    training: float
    validation: float
    measuring: float  # calibration, the evaluation of start and end, and the report

    @property
    def total(self) -> float:
        return self.training + self.validation + self.measuring

    def line(self) -> str:
        """One line of at most 80 columns."""
        if math.isinf(self.total):
            return "the run has no last step, so its end cannot be estimated"
        parts = [f"{self.steps:,.0f} steps {roughly(self.training)}"]
        if self.validation:
            parts.append(f"validation {roughly(self.validation)}")
        return f"about {roughly(self.total)} to go: {', '.join(parts)}, measuring {roughly(self.measuring)}"


class Load:
    """Amount of work in a run, known before Lightning has set up the loops.

    Args:
        trainer: of the run.
        module: a `RunModule`.
    """

    def __init__(self, trainer: Trainer, module: Any):
        self._trainer = trainer
        self.pace: Pace = module.pace
        data, run_data = module.data, module.run_data
        length = getattr(data, "sequence_length", None)
        size = getattr(data, "batch_size", None)
        self.micro_batch: float | None = length * size if isinstance(length, int) and isinstance(size, int) else None
        """Tokens; None until a batch was there."""
        self.test = tokens_of(run_data.test())
        self.validation = tokens_of(run_data.validation())
        limit = trainer.limit_val_batches
        if isinstance(limit, float):
            self.validation *= limit

    def left(self) -> TimeLeft | None:
        """None while nothing is measured, or the size of a step is not known."""
        trainer, pace = self._trainer, self.pace
        if self.micro_batch is None:
            return None
        steps = max(self._steps() - trainer.global_step, 0)
        training = pace.seconds(Work.TRAINING, self.micro_batch * trainer.accumulate_grad_batches)
        validation = pace.seconds(Work.VALIDATION, self.validation)
        stages = [pace.seconds(work, tokens) for work, tokens in pace.expected.items() if tokens]
        if training is None or validation is None:
            return None
        measuring = sum(seconds or 0.0 for seconds in stages) + _REPORT
        budget = next((one for one in trainer.callbacks if isinstance(one, TimeBudget)), None)  # type: ignore[attr-defined]
        if budget is not None and budget.total_steps is None:  # max_steps is a number never reached
            steps = int(max(budget.seconds - budget.used, 0.0) / training)
        return TimeLeft(steps, steps * training, self._validations_left(steps) * validation, measuring)

    def _steps(self) -> float:
        trainer = self._trainer
        if trainer.max_steps >= 0:
            return trainer.max_steps
        batches = trainer.num_training_batches  # infinite before the loops are set up
        return batches * (trainer.max_epochs or math.inf) / trainer.accumulate_grad_batches

    def _validations_left(self, steps: float) -> float:
        trainer = self._trainer
        if not self.validation:
            return 0
        batches: float | None = getattr(trainer, "val_check_batch", None) or None
        if batches is None and isinstance(trainer.val_check_interval, int):
            batches = trainer.val_check_interval
        if batches is None or math.isinf(batches):
            return 1
        interval = batches / trainer.accumulate_grad_batches
        done = trainer.global_step
        return math.floor((done + steps) / interval) - math.floor(done / interval)


def tokens_of(loader: Any) -> float:
    """Tokens of all batches, about; 0 where that cannot be known without reading them."""
    if loader is None:
        return 0.0
    try:
        with torch.random.fork_rng(devices=[]):  # an iterator of torch's draws a seed
            return float(len(loader) * next(iter(loader))["input_ids"].numel())
    except (TypeError, KeyError, IndexError, StopIteration):
        return 0.0
