"""What a run shows: about how long it takes, in time, and one bar or a few lines."""

import os
import pickle
import pty
import re
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Trainer

from lit_sparse import SparseAttentionModule
from lit_sparse.common.formatting import roughly
from lit_sparse.data import AdditionData
from lit_sparse.objective import KL, Lagrangian
from lit_sparse.training.callbacks.progress import SparsityProgressBar, fitted
from lit_sparse.training.callbacks.time_left import Load, TimeLeft, tokens_of
from lit_sparse.training.pace import Pace, Work
from tests.conftest import REPOSITORY


class Data:
    sequence_length, batch_size = 10, 4


class Texts:
    """16 sequences to validate on, in batches of 8."""

    def validation(self):
        return [{"input_ids": torch.zeros(8, 10)}] * 2

    test = validation


class Module:
    def __init__(self):
        self.pace, self.data, self.run_data = Pace(), Data(), Texts()


class FakeTrainer:
    """100 steps of two micro-batches, 20 of them done; a validation every 10 steps."""

    max_steps, global_step, accumulate_grad_batches = 100, 20, 2
    val_check_interval, limit_val_batches, max_epochs, num_training_batches = 20, 1.0, -1, float("inf")
    callbacks = ()


def test_time_left_counts_steps_validations_and_what_is_measured():
    module, trainer = Module(), FakeTrainer()
    load = Load(trainer, module)
    assert load.left() is None, "nothing is measured yet"
    module.pace.measured(Work.TRAINING, 40, 1.0)  # a micro-batch
    module.pace.measured(Work.VALIDATION, 160, 3.0)
    module.pace.measured(Work.EVALUATION, 160, 5.0)
    module.pace.expected[Work.EVALUATION] = 320.0  # start and end
    left = load.left()
    assert left.steps == 80 and left.training == pytest.approx(160.0)
    assert left.validation == pytest.approx(8 * 3.0)
    assert 10.0 <= left.measuring < 40.0 and left.measuring >= 2 * 5.0
    assert left.total == pytest.approx(left.training + left.validation + left.measuring)
    assert left.line().startswith(f"about {roughly(left.total)} to go: 80 steps 3 min, validation 24 s, measuring ")


def test_a_run_without_a_last_step_says_so():
    assert "no last step" in TimeLeft(float("inf"), float("inf"), 0.0, 1.0).line()


def test_a_long_runs_line_fits():
    assert len(TimeLeft(4_000_000, 9e6, 9e5, 9e4).line()) <= 80


def test_loaders_without_a_length_count_nothing():
    assert tokens_of(None) == 0 and tokens_of(iter([])) == 0
    assert tokens_of(Texts().validation()) == 160


def test_a_line_takes_whole_parts():
    assert fitted("step 1", ["a" * 5, "b" * 50, "c"], 20) == "step 1, aaaaa, c"


def test_a_module_can_be_pickled_after_a_run(llama_folder, tmp_path):
    """As it could before, though the bar listens to its pace while it runs."""
    module = SparseAttentionModule(str(llama_folder), objective=Lagrangian(KL(0.1)))
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(module, datamodule=AdditionData(digits=1, batch_size=8, eval_batch_size=16, held_out=0.2))
    assert any(isinstance(callback, SparsityProgressBar) for callback in trainer.callbacks)
    assert pickle.loads(pickle.dumps(module.pace)).is_measured(Work.EVALUATION)


def test_a_log_has_lines_and_no_bar(make_config, start_python):
    config = make_config("run", {"trainer.enable_progress_bar": True, "model.init_args.start": {"kl": 0.02}})
    process = start_python("main.py", "fit", "--config", config)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    shown = out + errors
    assert "\r" not in shown and "it/s" not in shown and "|" not in shown
    assert re.search(r"^about .* to go: \d+ steps .*, validation .*, measuring ", shown, re.M), shown
    assert re.search(r"^step 3 of 6, .* to go, CE ", shown, re.M), shown
    lines = shown.splitlines()
    assert not [line for line in lines if len(line) > 80 and str(config.parent) not in line], shown
    assert lines[-1].startswith("model ") and lines[-2].startswith("report ")


def test_a_terminal_has_one_bar(make_config):
    config = make_config("run", {"trainer.enable_progress_bar": True})
    leader, follower = pty.openpty()
    subprocess.run(["stty", "rows", "40", "cols", "80"], stdin=follower, check=True)
    process = subprocess.Popen(
        [sys.executable, "main.py", "fit", "--config", str(config)],
        cwd=REPOSITORY, stdin=follower, stdout=follower, stderr=follower,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "COLUMNS": "80"},
    )  # fmt: skip
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not part:
            break
        shown += part
    assert process.wait(timeout=60) == 0, shown.decode()
    text = shown.decode()
    assert "step 6/6" in text
    assert "\x1b[A" not in text, "no second bar below the first"
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;]*m", "", text)) if "step" in line)
