"""Lightning's Trainer in a script gives what the command line gives, and goes together with what others bring."""

import inspect
import json
import os
import signal
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, IterableDataset

from lit_sparse import SparseAttentionModule, from_pretrained
from lit_sparse.commands.main import main
from lit_sparse.common.errors import Interrupted
from lit_sparse.data import AdditionData
from lit_sparse.objective import KL, Lagrangian
from lit_sparse.training import Calibration
from lit_sparse.training.callbacks import SparsityProgressBar, StopAtStepBoundary, Throughput
from lit_sparse.training.checkpoint_io import AtomicCheckpointIO
from lit_sparse.transcoders import TranscoderConfig, TranscoderModule, load_transcoder

DATA = {"digits": 1, "batch_size": 8, "eval_batch_size": 16, "held_out": 0.2}
TRAINER = {
    "accelerator": "cpu", "max_steps": 6, "max_epochs": -1, "val_check_interval": 3, "check_val_every_n_epoch": None,
    "gradient_clip_val": 1.0, "num_sanity_val_steps": 0, "enable_model_summary": False, "log_every_n_steps": 1,
}  # fmt: skip


def make(folder, **settings):
    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    return SparseAttentionModule(
        str(folder), objective=Lagrangian(KL(0.05)), optimizer=optimizer, gate_lr=0.1, **settings
    )


@pytest.fixture
def fit(llama_folder, tmp_path):
    """Trains in `tmp_path / name`; returns the trainer and its module."""

    def fit(name, *callbacks, data=None, ckpt_path=None, module=None, **settings):
        settings = {"logger": False, **TRAINER, **settings}
        trainer = Trainer(default_root_dir=tmp_path / name, callbacks=list(callbacks), **settings)
        module = module or make(llama_folder)
        trainer.fit(module, data or AdditionData(**DATA), ckpt_path=ckpt_path)
        return trainer, module

    return fit


def weights(folder):
    return from_pretrained(folder / "model").state_dict()


def summary_of(folder):
    summary = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in summary.items() if "seconds" not in key}


def test_a_script_gives_what_the_command_line_gives(fit, make_config, tmp_path, capsys):
    assert main(["fit", "--config", str(make_config("command"))]) is None
    fit("script")
    assert "report.html" in capsys.readouterr().out
    assert summary_of(tmp_path / "script") == summary_of(tmp_path / "command")
    torch.testing.assert_close(weights(tmp_path / "script"), weights(tmp_path / "command"), rtol=0, atol=0)
    for name in ("report.html", "plots/edges.png", "record", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (tmp_path / "script" / name).exists(), name


class Signal(Callback):
    def __init__(self, at):
        self.at = at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_stops_it_at_a_step_and_it_goes_on_from_there(fit, tmp_path):
    with pytest.raises(Interrupted, match="after step 5"):
        fit("cut", Signal(at=4))
    last = tmp_path / "cut/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 5 and not (tmp_path / "cut/model").exists()
    with pytest.raises(ValueError, match="holds another run's checkpoints"):
        fit("cut")
    fit("cut", ckpt_path=str(last))
    fit("whole")
    assert summary_of(tmp_path / "cut") == summary_of(tmp_path / "whole")
    torch.testing.assert_close(weights(tmp_path / "cut"), weights(tmp_path / "whole"), rtol=0, atol=0)


def test_what_the_user_brings_stays(fit, tmp_path):
    own = ModelCheckpoint(dirpath=tmp_path / "own", every_n_train_steps=2, save_top_k=-1)
    nameless = ModelCheckpoint(every_n_train_steps=4)  # into the run's folder
    throughput, bar = Throughput(peak_flops=1e12), RichProgressBar(leave=True)
    logger = CSVLogger(tmp_path, name="log")
    trainer, _ = fit("run", own, nameless, throughput, bar, logger=logger)
    assert {own, nameless, throughput, bar} <= set(trainer.callbacks)
    assert sum(isinstance(callback, Throughput) for callback in trainer.callbacks) == 1
    assert not any(isinstance(callback, SparsityProgressBar) for callback in trainer.callbacks)
    assert len(list((tmp_path / "own").glob("*.ckpt"))) == 3 and (tmp_path / "run/checkpoints/last.ckpt").is_file()
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)


@pytest.mark.parametrize("bar", [[], [TQDMProgressBar()], [RichProgressBar()]], ids=["none", "tqdm", "rich"])
def test_lightnings_own_progress_bar_makes_room(llama_folder, tmp_path, bar):
    trainer = Trainer(default_root_dir=tmp_path, logger=False, callbacks=bar, **TRAINER)
    trainer.fit(make(llama_folder), AdditionData(**DATA))
    assert [type(one) for one in trainer.callbacks if isinstance(one, ProgressBar)] == [SparsityProgressBar]


def test_nothing_is_written_without_checkpoints(fit, tmp_path):
    trainer, module = fit("run", enable_checkpointing=False, enable_progress_bar=False)
    assert not (tmp_path / "run").exists() and module.state.tokens == 6 * 8 * 6
    assert not any(isinstance(callback, StopAtStepBoundary) for callback in trainer.callbacks)


class Others(LightningDataModule):
    """A data module that knows nothing of this package."""

    def __init__(self):
        super().__init__()
        source = AdditionData(**DATA)
        source.setup()
        self.batches = {split: list(getattr(source, f"{split}_dataloader")()) for split in ("train", "val")}

    def train_dataloader(self):
        return DataLoader(self.batches["train"], batch_size=None)

    def val_dataloader(self):
        return DataLoader(self.batches["val"], batch_size=None)


def test_a_transcoder_is_trained_alike(fit, llama_folder, tmp_path):
    optimizer = partial(torch.optim.Adam, lr=1e-2)
    module = TranscoderModule(str(llama_folder), TranscoderConfig(features=16, k=4), optimizer=optimizer)
    fit("run", module=module)
    assert load_transcoder(tmp_path / "run/transcoder").config.features == 16
    assert {"best.ckpt", "last.ckpt"} == {path.name for path in (tmp_path / "run/checkpoints").iterdir()}


def test_anybodys_data_module_serves(fit, llama_folder, tmp_path):
    module = make(llama_folder, start=Calibration(kl=0.05))
    fit("run", data=Others(), module=module)
    assert 0 < summary_of(tmp_path / "run")["edge_fraction_start"] < 1  # of the validation split, there is no other
    assert from_pretrained(tmp_path / "run/model") is not None


def test_loaders_without_a_data_module_serve(llama_folder, tmp_path):
    batches = Others().batches
    trainer = Trainer(default_root_dir=tmp_path / "run", logger=False, **TRAINER)
    loaders = [DataLoader(batches[split], batch_size=None) for split in ("train", "val")]
    trainer.fit(make(llama_folder), *loaders)
    assert summary_of(tmp_path / "run")["steps"] == 6
    trainer = Trainer(default_root_dir=tmp_path / "calibrated", logger=False, **TRAINER)
    trainer.fit(make(llama_folder, start=Calibration(kl=0.05)), *loaders)
    assert 0 < summary_of(tmp_path / "calibrated")["edge_fraction_start"] < 1


def test_a_run_that_could_not_be_reported_on_does_not_start(llama_folder, tmp_path):
    loader = DataLoader(Others().batches["train"], batch_size=None)
    trainer = Trainer(default_root_dir=tmp_path / "run", logger=False, **TRAINER)
    with pytest.raises(ValueError, match="give fit a test or validation loader"):
        trainer.fit(make(llama_folder), loader)
    assert not (tmp_path / "run").exists() and trainer.global_step == 0


def test_a_loader_without_a_length_is_reported_on(fit, tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(Others().batches["val"])

    class Streamed(Others):
        def test_dataloader(self):
            return DataLoader(Stream(), batch_size=None)

    fit("run", data=Streamed())
    assert summary_of(tmp_path / "run")["test_tokens"] > 0


def test_a_trainer_without_a_folder_of_its_own_writes_to_runs_default(llama_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = make(llama_folder)
    module.trainer = Trainer(logger=False, accelerator="cpu")
    assert module.run_dir == tmp_path / "runs/default"


def test_a_subclasser_reads_one_short_file():
    source = inspect.getsource(inspect.getmodule(SparseAttentionModule))
    assert len(source.splitlines()) <= 200
