import pytest
import torch
from lightning.pytorch import Callback

from lit_sparse.commands.main import main
from lit_sparse.training.checkpoint_io import AtomicCheckpointIO
from lit_sparse.training.schedule import WarmupDecay

pytestmark = pytest.mark.usefixtures("unpainted")


def test_rates_rise_then_fall_to_nothing():
    weights, gates = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.AdamW([{"params": [weights], "lr": 1e-3}, {"params": [gates], "lr": 0.04}])
    schedule = WarmupDecay(optimizer, total_steps=10, warmup_steps=3)
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    factors = [rate / 1e-3 for rate, _ in rates]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7])
    assert [rate / 0.04 for _, rate in rates] == pytest.approx(factors)
    assert optimizer.param_groups[0]["lr"] == 0


def test_a_warm_up_as_long_as_the_run():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="warmup_steps"):
        WarmupDecay(optimizer, total_steps=20, warmup_steps=20)


def test_an_end_that_nobody_set_is_not_guessed():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = WarmupDecay(optimizer, warmup_steps=3)
    assert optimizer.param_groups[0]["lr"] == 0.25
    optimizer.step()
    with pytest.raises(ValueError, match=r"total_steps.*end_at"):
        schedule.step()


class Rates(Callback):
    """The rate of the weights in each step."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(pl_module.optimizers().param_groups[0]["lr"])


DECAY = {"class_path": "lit_sparse.training.WarmupDecay", "init_args": {"warmup_steps": 2}}


@pytest.fixture
def rates_of(monkeypatch):
    """Runs a command; the rates of its steps."""

    def run(*arguments):
        noted = Rates()
        with monkeypatch.context() as patch:
            patch.setattr("lit_sparse.training.module.SparsityByHead", lambda: noted)
            main([str(argument) for argument in arguments])
        return noted.rates

    return run


@pytest.mark.parametrize("steps", [4, 9])
def test_the_rate_falls_to_nothing_at_the_trainers_last_step(make_config, rates_of, tmp_path, steps):
    config = make_config("run", {"model.init_args.scheduler": DECAY})
    rates = rates_of("fit", "--config", config, "--trainer.max_steps", steps, "--trainer.val_check_interval", 1)
    falling = [1e-3 * (steps - step) / (steps - 2) for step in range(2, steps)]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, *falling])
    [schedule] = AtomicCheckpointIO().load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["lr_schedulers"]
    assert schedule["_last_lr"] == [0, 0]


def test_a_run_that_is_resumed_with_more_steps_falls_over_these(make_config, rates_of):
    config = make_config("run", {"model.init_args.scheduler": DECAY, "trainer.val_check_interval": 2})
    rates_of("fit", "--config", config, "--trainer.max_steps", 4)
    rates = rates_of("fit", "--config", config, "--trainer.max_steps", 10, "--on_existing", "resume")
    assert rates[1:] == pytest.approx([1e-3 * (10 - step) / 8 for step in range(5, 10)])


def test_a_total_of_its_own_stays(make_config, rates_of):
    own = {**DECAY, "init_args": {"warmup_steps": 0, "total_steps": 12}}
    rates = rates_of("fit", "--config", make_config("run", {"model.init_args.scheduler": own}))
    assert rates == pytest.approx([1e-3 * (12 - step) / 12 for step in range(6)])


def test_a_run_without_a_last_step_is_refused(make_config, capsys):
    settings = {"model.init_args.scheduler": DECAY, "trainer.max_steps": -1, "trainer.max_epochs": 1}
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", str(make_config("run", settings))])
    assert exit.value.code == 2
    assert "trainer.max_steps, which is not set" in capsys.readouterr().err
