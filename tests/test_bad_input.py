"""Mistakes and mishaps: each ends with one line that says what to do, as early as possible, and loses nothing."""

import errno
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from lit_sparse import SparseAttentionModule
from lit_sparse.callbacks import AtomicCheckpointIO
from lit_sparse.cli import main
from lit_sparse.errors import CheckpointError, NonFiniteLossError


@pytest.fixture
def refused(capsys, monkeypatch):
    """Runs a command that must end with exit status 2 and returns its message; no step may have been made."""

    def run(*arguments, trained=False):
        steps = []
        original = SparseAttentionModule.training_step

        def step(self, batch, batch_idx):
            steps.append(batch_idx)
            return original(self, batch, batch_idx)

        with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit:
            patch.setattr(SparseAttentionModule, "training_step", step)
            main([str(argument) for argument in arguments])
        message = capsys.readouterr().err
        assert exit.value.code == 2, message
        assert "Traceback" not in message
        assert bool(steps) == trained
        return message

    return run


def says(message, *words):
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in {message}"


def test_a_family_without_the_attention_interface(make_config, refused, tmp_path):
    folder = tmp_path / "bloom"
    BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(folder)
    message = refused("fit", "--config", make_config("run", {"model.init_args.model": str(folder)}))
    says(message, "bloom", "attention interface", "llama")
    says(refused("info", "--config", make_config("run", {"model.init_args.model": str(folder)})), "bloom")


def test_missing_weights(make_config, refused, tmp_path, llama_folder):
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    (folder / "model.safetensors").unlink()
    config = make_config("run", {"model.init_args.model": str(folder)})
    says(refused("fit", "--config", config), "cannot load the base model", str(folder), "model.safetensors")
    shutil.rmtree(folder)
    says(refused("fit", "--config", config, "--on_existing", "overwrite"), "no model folder", str(folder))
    folder.mkdir()
    says(refused("fit", "--config", config, "--on_existing", "overwrite"), str(folder), "config.json")


def test_corrupt_weights(make_config, refused, tmp_path, llama_folder):
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    weights = folder / "model.safetensors"
    config = make_config("run", {"model.init_args.model": str(folder)})
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"\xff" * 64 + whole[64:], b""):
        weights.write_bytes(damaged)
        message = refused("fit", "--config", config, "--on_existing", "overwrite")
        says(message, "cannot load the base model", str(folder))


def test_a_tensor_is_missing(make_config, refused, tmp_path, llama_folder):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    message = refused("fit", "--config", make_config("run", {"model.init_args.model": str(folder)}))
    says(message, "incomplete", "model.layers.1.self_attn.q_proj.weight")


def text_data(pattern, **settings):
    return {"class_path": "lit_sparse.data.TextData", "init_args": {"sources": [pattern], **settings}}


def test_empty_data(make_config, refused, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    data = text_data(str(tmp_path / "empty.txt"), sequence_length=16)
    says(refused("fit", "--config", make_config("run", {"data": data})), "0 tokens", "add text")
    data = text_data(str(tmp_path / "*.md"), sequence_length=16)
    message = refused("fit", "--config", make_config("run", {"data": data}), "--on_existing", "overwrite")
    says(message, "no file matches", "*.md")
    config = make_config("run", {"data.init_args.batch_size": 500})
    says(refused("fit", "--config", config, "--on_existing", "overwrite"), "smaller batch_size")


def test_a_sequence_longer_than_the_models_positions(make_config, refused, text_files):
    data = text_data(text_files, sequence_length=64)  # the model has 32
    message = refused("fit", "--config", make_config("run", {"data": data}))
    says(message, "sequence_length = 64", "32 positions", "lower it")


def test_tau_below_the_base_loss(make_config, refused):
    constraint = {"class_path": "lit_sparse.objective.Absolute", "init_args": {"tau": 0.01}}
    message = refused("fit", "--config", make_config("run", {"model.init_args.constraint": constraint}))
    says(message, "tau = 0.0100", "base model", "epsilon")


@pytest.mark.parametrize("tolerance", ["-0.1", "0.0", ".nan"])
def test_a_tolerance_that_is_not_positive(make_config, refused, tolerance, tmp_path):
    config = make_config("run")
    message = refused("fit", "--config", config, "--model.init_args.constraint.init_args.tolerance", tolerance)
    says(message, "tolerance", "positive")
    assert not (tmp_path / "run").exists()


def test_unknown_keys(make_config, refused, tmp_path):
    for changes, key in [
        ({"model.init_args.gat_lr": 0.1}, "gat_lr"),
        ({"trainer.max_step": 3}, "max_step"),
        ({"model.init_args.gate": {"treshold": 0.1}}, "treshold"),
        ({"run_folder": "x"}, "run_folder"),
        ({"model.class_path": "lit_sparse.SparsAttentionModule"}, "SparsAttentionModule"),
        ({"model.init_args.gate": {"family": "sigmoid"}}, "sigmoid"),
        ({"model.init_args.train": "heads"}, "heads"),
        ({"on_existing": "keep"}, "keep"),
    ]:
        message = refused("fit", "--config", make_config("run", changes))
        says(message, key)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    says(refused("fit", "--config", tmp_path / "nowhere.yaml"), "nowhere.yaml")


def test_a_machine_without_the_accelerator(make_config, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    says(refused("fit", "--config", make_config("run", {"trainer.accelerator": "cuda"})), "CUDA")


class TestCheckpoints:
    @pytest.fixture
    def finished(self, make_config, tmp_path):
        config = make_config("first")
        main(["fit", "--config", str(config)])
        return tmp_path / "first"

    def test_of_another_model(self, finished, make_config, refused, tmp_path):
        """Another folder, and another shape in the same folder."""
        other = tmp_path / "gpt2"
        model = GPT2LMHeadModel(GPT2Config(vocab_size=42, n_embd=16, n_layer=2, n_head=4, n_positions=32))
        model.save_pretrained(other)
        ckpt = finished / "checkpoints" / "last.ckpt"
        config = make_config("second", {"model.init_args.model": str(other)})
        says(refused("fit", "--config", config, "--ckpt_path", ckpt), "another model", str(other))
        out = ("--out", tmp_path / "out")
        says(refused("export", "--ckpt", ckpt, *out, "--config", config), "another model", str(other))

        checkpoint = torch.load(ckpt, weights_only=True)
        checkpoint["lit_sparse"]["model"] = str(other)
        torch.save(checkpoint, tmp_path / "shapes.ckpt")
        shutil.rmtree(tmp_path / "second", ignore_errors=True)
        message = refused("fit", "--config", config, "--ckpt_path", tmp_path / "shapes.ckpt")
        says(message, "another model", "missing")

    def test_of_another_program(self, make_config, refused, tmp_path):
        for number, foreign in enumerate(({"state_dict": {}, "global_step": 1}, torch.zeros(2))):
            torch.save(foreign, tmp_path / "foreign.ckpt")
            config = make_config(f"run{number}")
            says(
                refused("fit", "--config", config, "--ckpt_path", tmp_path / "foreign.ckpt"),
                "foreign.ckpt",
                "Lightning",
            )

    def test_that_does_not_exist_or_is_damaged(self, finished, make_config, refused, tmp_path):
        message = refused("fit", "--config", make_config("a"), "--ckpt_path", tmp_path / "no.ckpt")
        says(message, "no checkpoint at", "no.ckpt")
        whole = (finished / "checkpoints" / "last.ckpt").read_bytes()
        (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
        message = refused("fit", "--config", make_config("b"), "--ckpt_path", tmp_path / "half.ckpt")
        says(message, "half.ckpt", "no readable checkpoint")

    def test_that_would_run_code(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (Path(tmp_path / "pwned").touch, ())

        torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
        with pytest.raises(ValueError, match=r"evil\.ckpt is no readable checkpoint"):
            AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt")
        assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(("accumulation", "bad", "look_every"), [(1, 4, 1), (2, 9, 1), (2, 9, 50)])
def test_a_loss_that_is_not_finite(make_config, refused, monkeypatch, tmp_path, accumulation, bad, look_every):
    """NaN in one micro-batch (counted from 0): the weights on disk are those of the last finite step."""
    seen = []

    def broken(self, losses):
        if self.training:
            seen.append(None)
        value = self.constraint.per_token(losses)
        return value * float("nan") if self.training and len(seen) == bad + 1 else value

    monkeypatch.setattr(SparseAttentionModule, "constraint_per_token", broken)
    settings = {
        "trainer.accumulate_grad_batches": accumulation,
        "trainer.val_check_interval": accumulation,
        "trainer.log_every_n_steps": look_every,
    }
    config = make_config("run", settings)
    message = refused("fit", "--config", config, trained=True)
    step = bad // accumulation
    says(message, f"at step {step}", "nan", "learning rate", "gradient_clip_val")
    last = AtomicCheckpointIO().load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["global_step"] == step
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())
    monkeypatch.undo()
    main(["fit", "--config", str(config), "--on_existing", "resume"])
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.parametrize("validate_every", [5, 10])
def test_a_loss_that_is_not_finite_is_found_before_anything_is_saved(
    make_config, refused, monkeypatch, tmp_path, validate_every
):
    """Nobody looks at the loss between steps: it is found at the next validation, or when training ends."""
    seen = []

    def broken(self, losses):
        if self.training:
            seen.append(None)
        return self.constraint.per_token(losses) * (float("nan") if len(seen) == 3 else 1.0)

    monkeypatch.setattr(SparseAttentionModule, "constraint_per_token", broken)
    settings = {"trainer.log_every_n_steps": 50, "trainer.val_check_interval": validate_every}
    says(refused("fit", "--config", make_config("run", settings), trained=True), "at step 2", "nan")
    assert not list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))


@pytest.mark.parametrize(("accumulation", "look_every", "clip"), [(1, 1, 1.0), (2, 50, 1.0), (1, 50, 0.0)])
def test_a_gradient_that_is_not_finite(make_config, refused, monkeypatch, tmp_path, accumulation, look_every, clip):
    """The loss of step 4 is finite, its gradient is not: the weights on disk are those before that step, and what is
    in memory since then cannot be saved."""
    seen, before = [], []

    def broken(self, losses):
        value = self.constraint.per_token(losses)
        if self.training:
            seen.append(self)
            if len(seen) == 4 * accumulation + 1:
                before.append({name: kept.clone() for name, kept in self.state_dict().items()})
                return value + 0 * (value - value.detach()).sqrt()
        return value

    monkeypatch.setattr(SparseAttentionModule, "constraint_per_token", broken)
    settings = {
        "trainer.accumulate_grad_batches": accumulation,
        "trainer.val_check_interval": accumulation,
        "trainer.log_every_n_steps": look_every,
        "trainer.gradient_clip_val": clip,
    }
    message = refused("fit", "--config", make_config("run", settings), trained=True)
    says(message, "at step 4", "gradients that are NaN or infinite", "learning rate", "square root at 0")
    last = AtomicCheckpointIO().load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 4
    torch.testing.assert_close(last["state_dict"], before[0], rtol=0, atol=0)
    states = last["optimizer_states"][0]["state"].values()
    assert states and all(torch.isfinite(value).all() for state in states for value in state.values())
    with pytest.raises(NonFiniteLossError, match="at step 4"):
        seen[0].trainer.save_checkpoint(tmp_path / "late.ckpt")


class TestNoDiskSpace:
    @pytest.fixture
    def target(self, tmp_path):
        target = tmp_path / "checkpoints" / "last.ckpt"
        AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(1000)}, target)
        return target

    def untouched(self, target):
        assert torch.equal(torch.load(target, weights_only=True)["weights"], torch.arange(1000))
        assert [file.name for file in target.parent.iterdir()] == [target.name]

    def test_known_in_advance(self, target, monkeypatch):
        usage = type(shutil.disk_usage(target.parent))(10**9, 10**9 - 5000, 5000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(CheckpointError, match=r"no disk space .*needs about .*Free some space.*untouched"):
            AtomicCheckpointIO().save_checkpoint({"weights": [torch.zeros(1000), {"more": torch.zeros(1000)}]}, target)
        self.untouched(target)

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 512 vs 448"),
        ],
        ids=["full", "quota", "torch's own"],
    )
    def test_that_runs_out_while_writing(self, target, monkeypatch, error):
        def save(checkpoint, file):
            file.write(b"half a checkpoint")
            raise error

        monkeypatch.setattr(torch, "save", save)
        with pytest.raises(CheckpointError, match=r"could not write .*untouched.*disk space"):
            AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(1000)}, target)
        self.untouched(target)

    def test_ends_a_run_with_its_earlier_checkpoint(self, make_config, refused, monkeypatch, tmp_path):
        usage, checked = shutil.disk_usage(tmp_path), []

        def fills_up(path):
            checked.append(path)
            return usage if len(checked) <= 2 else usage._replace(free=10)  # best and last of the first validation

        monkeypatch.setattr(shutil, "disk_usage", fills_up)
        message = refused("fit", "--config", make_config(), trained=True)
        says(message, "no disk space", "resume")
        last = AtomicCheckpointIO().load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
        assert last["global_step"] == 3
