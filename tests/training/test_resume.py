"""An interrupted run that is resumed ends where an uninterrupted one ends, bit for bit."""

import csv
import hashlib
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence

import pytest
import torch

from lit_sparse import SparseAttentionModule
from lit_sparse.commands.main import main
from lit_sparse.training.checkpoint_io import AtomicCheckpointIO
from lit_sparse.training.history import merge_history

pytestmark = pytest.mark.usefixtures("unpainted")

STEPS = 9
BATCHES_OF_AN_EPOCH = 5  # an odd number: with accumulation of 2 each epoch ends on half a step


def same(left, right):
    """Bitwise equality of nested containers of tensors."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, Sequence) and not isinstance(left, str):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right or (left != left and right != right)


@pytest.fixture
def recorded(monkeypatch):
    """Runs `main([...])`, noting every micro-batch and the state at the end; may break it off at one."""
    original = SparseAttentionModule.training_step

    def run(arguments, at=None, how=None):
        notes, ends = {}, []

        def step(self, batch, batch_idx):
            number = self.trainer.fit_loop.total_batch_idx
            noise = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()
            if number == at and how == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            if number == at and how == "crash":
                raise RuntimeError("the power went")
            loss = original(self, batch, batch_idx)
            data = batch["input_ids"].tolist()
            note = [
                batch_idx,
                self.trainer.global_step,
                data,
                noise,
                float(self.objective.multiplier.value),
                float(loss.detach()),
            ]
            notes[number] = [*note, float(self.trainer.callback_metrics["train/edge_fraction"]), self.state.tokens]
            return loss

        def finish(module, run_dir):
            trainer = module.trainer
            merge_history(run_dir)
            optimizer = trainer.optimizers[0].state_dict()
            start = module.state.start._asdict()  # measured once, before the first step
            ends.append(
                [module.state_dict(), optimizer, module.objective.multiplier.state_dict(), trainer.global_step, start]
            )
            return {}

        monkeypatch.setattr(SparseAttentionModule, "training_step", step)
        monkeypatch.setattr(SparseAttentionModule, "finish", finish)
        status = 0
        try:
            main(arguments)
        except SystemExit as exit:
            status = exit.code
        except RuntimeError as error:
            assert how == "crash" and "the power went" in str(error)
            status = 1
        return notes, ends[0] if ends else None, status

    return run


def history(folder):
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    unstable = ("train/tokens_per_second",)
    return [{name: value for name, value in row.items() if value and name not in unstable} for row in rows]


CASES = {
    # accumulation, validation every so many batches, interrupted in this micro-batch (from 0), how
    "mid epoch": (1, 100, 2, "signal"),
    "at the last batch of an epoch": (1, 100, 4, "signal"),
    "at a validation": (1, 3, 5, "signal"),
    "between validations": (1, 3, 7, "crash"),
    "validation at the end of the epoch": (1, 5, 7, "crash"),
    "first half of a step": (2, 100, 6, "signal"),
    "second half of a step": (2, 100, 8, "signal"),
    "half a step at the end of an epoch": (2, 100, 4, "signal"),
    "validation at whole steps": (2, 2, 3, "crash"),
    "validation between the halves of a step": (2, 3, 4, "crash"),
    "validation in the second epoch": (2, 4, 11, "crash"),
}


ADAPTERS = {"model.init_args.lora": {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]}}
SETTINGS = [(*case, {}) for case in CASES.values()] + [(*CASES["between validations"], ADAPTERS)]


@pytest.mark.parametrize(
    ("accumulation", "interval", "at", "how", "more"), SETTINGS, ids=[*CASES, "adapters alone in the checkpoint"]
)
def test_a_resumed_run_is_the_uninterrupted_one(make_config, recorded, tmp_path, accumulation, interval, at, how, more):
    settings = {
        **more,
        "data.init_args.batch_size": 16,
        "trainer.max_steps": STEPS,
        "trainer.accumulate_grad_batches": accumulation,
        "trainer.val_check_interval": interval,
        "model.init_args.objective.multiplier": {"class_path": "lit_sparse.objective.NuPI"},
        "model.init_args.scheduler": {
            "class_path": "torch.optim.lr_scheduler.StepLR",
            "init_args": {"step_size": 2, "gamma": 0.9},
        },
    }
    whole, end, status = recorded(["fit", "--config", str(make_config("whole", settings))])
    assert status == 0 and len({note[5] for note in whole.values()}) == len(whole)

    fit = ["fit", "--config", str(make_config("cut", settings))]
    before, unfinished, status = recorded(fit, at, how)
    assert unfinished is None and status == (143 if how == "signal" else 1)
    after, cut_end, status = recorded([*fit, "--on_existing", "resume"])
    assert status == 0

    first = min(after)
    assert 0 < first <= at + accumulation
    assert first <= max(before) + 1  # nothing is left out
    assert before == {number: whole[number] for number in before}
    for number, note in whole.items():
        assert number < first or after[number] == note, number
    assert after.keys() == {number for number in whole if number >= first}
    assert same(cut_end, end)
    assert merged_rows_match(history(tmp_path / "cut"), history(tmp_path / "whole"))


def merged_rows_match(cut, whole):
    """No step twice, none missing, the same numbers; validations may be fewer where a run stopped."""
    rows = [[row for row in rows if "train/loss" in row] for rows in (cut, whole)]
    assert [row["step"] for row in rows[0]] == [str(step) for step in range(STEPS)]
    return rows[0] == rows[1]


def test_sigterm_ends_at_a_step_boundary_and_the_run_goes_on(make_config, recorded, start_python, tmp_path):
    """The real thing: a process, a signal, the same command again."""
    settings = {"trainer.max_steps": 150, "trainer.val_check_interval": 25, "trainer.accumulate_grad_batches": 2}
    _, end, _ = recorded(["fit", "--config", str(make_config("whole", settings))])

    command = ["main.py", "fit", "--config", str(make_config("cut", settings))]
    process = start_python(*command)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    assert "SIGTERM" in errors and "--on_existing resume" in errors and str(last) in errors
    step = int(re.search(r"after step (\d+)", errors)[1])
    assert 0 < step < 150
    assert AtomicCheckpointIO().load_checkpoint(last)["global_step"] == step
    assert not list(last.parent.glob(".*"))  # nothing half-written is left

    _, cut_end, status = recorded([*command[1:], "--on_existing", "resume"])
    assert status == 0
    assert same(cut_end, end)
    steps = [int(row["step"]) for row in history(tmp_path / "cut") if "train/loss" in row]
    assert steps == list(range(150))


def test_a_second_interrupt_stops_at_once(tmp_path):
    from lit_sparse.training.callbacks import StopAtStepBoundary

    callback = StopAtStepBoundary(tmp_path)
    callback._note(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        callback._note(signal.SIGINT, None)


def test_resuming_on_other_data_says_so(make_config, capsys):
    main(["fit", "--config", str(make_config())])
    other = {"trainer.max_steps": 12, "data.init_args.held_out": 0.4}
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(make_config(changes=other)), "--on_existing", "resume"])
    assert stop.value.code == 2
    assert "resume with the first run's data settings" in capsys.readouterr().err
