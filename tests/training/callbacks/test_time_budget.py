"""A run that ends by the clock, on a clock that the test turns."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from lit_sparse.training.callbacks.checkpoints import StepBoundaryCheckpoint
from lit_sparse.training.callbacks.time_budget import TimeBudget
from lit_sparse.training.schedule import WarmupDecay

pytestmark = pytest.mark.usefixtures("unpainted")


class Slope(LightningModule):
    """One weight, and the rates of every step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rates = []

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        schedule = WarmupDecay(optimizer, total_steps=10_000, warmup_steps=10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Clock(Callback):
    """Time passes with steps (the first takes long: it compiles) and validations only."""

    def __init__(self, step=1.0, first=0.0, validation=0.0):
        self.now, self.step, self.first, self.validation = 0.0, step, first, validation
        self.validated_at = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.now += self.step + self.first
        self.first = 0.0

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.now += self.validation
        self.validated_at.append(trainer.global_step)


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(clock, seconds, ckpt_path=None, interval=50, **settings):
        monkeypatch.setattr(TimeBudget, "_now", staticmethod(lambda: clock.now))
        budget = TimeBudget(seconds, warmup_steps=5, measured_steps=5)
        module = Slope()
        trainer = Trainer(
            **{
                **{"accelerator": "cpu", "devices": 1, "max_epochs": -1, "max_steps": 10_000, "logger": False},
                **{"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0},
                **{"val_check_interval": interval, "check_val_every_n_epoch": None, "default_root_dir": tmp_path},
                **{"callbacks": [clock, budget, StepBoundaryCheckpoint(tmp_path)]},
                **settings,
            }
        )
        loader = DataLoader(torch.zeros(64, 1), batch_size=1)
        trainer.fit(module, loader, DataLoader(torch.zeros(1, 1)), ckpt_path=ckpt_path)
        return trainer, module, budget

    return run


def test_as_many_steps_as_fit_and_rates_that_reach_nothing(run):
    trainer, module, budget = run(Clock(first=30.0), seconds=230)
    assert trainer.global_step == budget.total_steps == trainer.max_steps == 200
    assert module.rates[-1] == pytest.approx(1 / 190) and max(module.rates) > 0.95
    assert module.rates[20:] == sorted(module.rates[20:], reverse=True)


def test_validations_are_allowed_for_and_the_end_is_validated(run, tmp_path):
    clock = Clock(validation=10.0)
    trainer, _, _ = run(clock, seconds=400, interval=30)
    assert clock.now <= 400
    assert clock.now > 360  # the first fit does not know what a validation takes
    assert clock.validated_at[-1] == trainer.global_step
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == trainer.global_step


def test_a_run_that_slows_down_ends_earlier_with_its_schedule_at_its_end(run):
    clock = Clock()

    def slower(trainer, *args):
        clock.step = 1.0 if trainer.global_step < 60 else 2.0

    clock.on_train_batch_end = slower
    trainer, module, _ = run(clock, seconds=300)
    assert 298 <= clock.now <= 302
    assert trainer.global_step == 60 + 120
    assert module.rates[-1] < 0.01


def test_the_deadline_holds_without_a_fit(run):
    trainer, _, budget = run(Clock(step=100.0), seconds=250)
    assert trainer.global_step == 3 and budget.total_steps is None


def test_accumulated_steps_are_counted_whole(run):
    trainer, _, _ = run(Clock(), seconds=100, accumulate_grad_batches=4)
    assert trainer.global_step == 25


def test_a_resumed_run_has_what_is_left(run, tmp_path):
    class Interruption(Exception):
        pass

    clock = Clock()

    def stop(trainer, *args):
        if trainer.global_step == 120:
            raise Interruption

    clock.on_train_batch_end = stop
    with pytest.raises(Interruption):
        run(clock, seconds=200)
    clock = Clock(first=7.0)
    trainer, module, _ = run(clock, seconds=200, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    saved_at = 100
    assert module.rates[0] == pytest.approx((200 - saved_at) / 190)  # the schedule that was fitted before
    assert trainer.global_step == 193  # it was saved at second 100
    assert clock.now == 100
    assert module.rates[-1] < 0.02


def test_what_cannot_be_fitted_is_refused(run):
    with pytest.raises(ValueError, match="seconds"):
        TimeBudget(0)
    with pytest.raises(ValueError, match="shares"):
        TimeBudget(10, refits=(1.5,))
    with pytest.raises(MisconfigurationException, match="max_steps"):
        run(Clock(), seconds=100, max_steps=-1)
