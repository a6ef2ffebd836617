"""Mistakes and mishaps: each ends with one line that says what to do, as early as possible, and loses nothing."""

import errno
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, GptOssConfig

from lit_sparse import SparseAttentionModule
from lit_sparse.commands.main import main, named
from lit_sparse.common.errors import CheckpointError, NonFiniteLossError
from lit_sparse.common.files import check_writable
from lit_sparse.training.checkpoint_io import AtomicCheckpointIO

pytestmark = pytest.mark.usefixtures("unpainted")

COMMANDS = [*named()]


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


def test_a_family_is_refused_before_data_is_asked_for(make_config, refused, tmp_path, text_files):
    """The folder has no tokenizer, which would be the next complaint."""
    attention = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    for config, words in [
        (BloomConfig(hidden_size=16, n_layer=1, n_head=2), ["bloom", "attention interface", "llama"]),
        (GptOssConfig(**attention, head_dim=16, num_local_experts=4), ["gpt_oss", "attention sinks"]),
    ]:
        folder = tmp_path / config.model_type
        config.save_pretrained(folder)
        changes = {"model.init_args.model": str(folder), "data": text_data(text_files, sequence_length=16)}
        says(refused("fit", "--config", make_config("run", changes)), *words)
        assert not (tmp_path / "run").exists()


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
    message = refused("fit", "--config", make_config("run", {"model.init_args.objective.constraint": constraint}))
    says(message, "tau = 0.0100", "base model", "epsilon")


@pytest.mark.parametrize("tolerance", ["-0.1", "0.0", ".nan"])
def test_a_tolerance_that_is_not_positive(make_config, refused, tolerance, tmp_path):
    config = make_config("run")
    message = refused(
        "fit", "--config", config, "--model.init_args.objective.constraint.init_args.tolerance", tolerance
    )
    says(message, "tolerance", "positive")
    assert not (tmp_path / "run").exists()


CONSTRAINT = "model.init_args.objective.constraint"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainer.max_step": 3}, "unknown key trainer.max_step: did you mean trainer.max_steps?"),
        ({"run_folder": "x"}, "unknown key run_folder: did you mean run_dir?"),
        ({"modell": {"class_path": "x"}}, "unknown key modell.class_path: did you mean model.class_path?"),
        ({"model.init_args.gat_lr": 1}, "unknown key model.init_args.gat_lr: did you mean model.init_args.gate_lr?"),
        (
            {"model.init_args.gate": {"class_path": "lit_sparse.Probability", "init_args": {"treshold": 1}}},
            "model.init_args.gate.init_args.treshold: did you mean model.init_args.gate.init_args.threshold?",
        ),
        (
            {"model.init_args.gate": {"class_path": "lit_sparse.Contribution", "init_args": {"bias": 1}}},
            "unknown key model.init_args.gate.init_args.bias; there are centered, learnable, normalisation, sharpness,",
        ),
        (
            {f"{CONSTRAINT}.init_args.tol": 1},
            f"unknown key {CONSTRAINT}.init_args.tol; there are tolerance",
        ),
        (
            {"model.init_args.optimizer.init_args.lrr": 1},
            "optimizer.init_args.lrr: did you mean model.init_args.optimizer",
        ),
        ({"data.init_args.digit": 1}, "unknown key data.init_args.digit: did you mean data.init_args.digits?"),
        (
            {
                "trainer.callbacks": [
                    {"class_path": "lit_sparse.training.callbacks.TimeBudget", "init_args": {"day": 1}}
                ]
            },
            "unknown key trainer.callbacks.init_args.day; there are ",
        ),
        ({"model.class_path": "lit_sparse.SparsAttentionModule"}, "did you mean lit_sparse.SparseAttentionModule?"),
        (
            {f"{CONSTRAINT}.class_path": "lit_sparse.objective.KLL"},
            f"{CONSTRAINT}: no class lit_sparse.objective.KLL: did you mean lit_sparse.objective.KL?",
        ),
        ({"model.init_args.optimizer.class_path": "torch.optim.AdamV"}, "no class torch.optim.AdamV: did you mean"),
        ({"model.class_path": "nowhere.Module"}, "cannot import nowhere.Module: No module named 'nowhere'"),
        ({"model.class_path": "lit_sparse.data.TextData"}, "not correspond to a subclass of LightningModule"),
        ({"model.init_arg": {}}, "class_path and init_args; got"),
        ({"trainer.max_steps": "many"}, "trainer.max_steps: got many, expected int"),
        ({"model.init_args.gate_lr": "fast"}, "model.init_args.gate_lr: got fast, expected float"),
        ({"model.init_args.start": {"kl": "x"}}, "model.init_args.start.kl: got x, expected float or null"),
        ({"on_existing": "keep"}, "on_existing: got keep, expected one of 'error', 'resume', 'overwrite'"),
        ({"model.init_args.gate": {"class_path": "lit_sparse.Sigmoid"}}, "gate: no class lit_sparse.Sigmoid"),
        ({"model.init_args.gate": {"family": "logit"}}, "gate: class_path is missing: one of Contribution, Logit,"),
        ({"model.init_args.train": "heads"}, "error: train is 'all', 'attention' or 'none', got 'heads'"),
        ({f"{CONSTRAINT}.init_args.tolerance": -1}, "error: the constraint's tolerance must be a positive number"),
    ],
    ids=str,
)
def test_a_config_with_a_mistake(make_config, refused, changes, words):
    message = refused("fit", "--config", make_config("run", changes))
    says(message, words)
    assert len(message.splitlines()) <= 2 and len(message) < 500


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trainer.max_stepz", "3"], "unknown key trainer.max_stepz: did you mean trainer.max_steps?"),
        (["--trainer.max_step", "3"], "unknown key trainer.max_step: did you mean trainer.max_steps?"),  # no prefixes
        (["--modle.init_args.gate_lr=3"], "did you mean model.init_args.gate_lr?"),
        (["--model.gat_lr", "3"], "unknown key model.init_args.gat_lr: did you mean model.init_args.gate_lr?"),
        (["--trainer.max_steps", "many"], "trainer.max_steps: got many, expected int"),
        (["3"], "unexpected argument '3'"),
    ],
    ids=str,
)
def test_a_run_with_a_mistake(make_config, refused, arguments, words):
    message = refused("fit", "--config", make_config(), *arguments)
    says(message, words, "--help")
    assert len(message.splitlines()) == 2


def test_a_config_that_does_not_exist(refused):
    says(refused("fit", "--config", "nowhere.yaml"), "no config file nowhere.yaml", "`lit-sparse configs` lists them")
    says(refused("info", "--config=nowhere.yaml"), "no config file nowhere.yaml")


def test_a_config_that_is_no_yaml(refused, tmp_path):
    (tmp_path / "run.yaml").write_text("model: [a\ndata: :\n  x")
    message = refused("fit", "--config", tmp_path / "run.yaml")
    says(message, "Problems parsing config", "line 2")
    assert len(message.splitlines()) == 2


def test_a_run_without_a_config(refused):
    says(refused("fit"), "--model", "--data", "--config FILE")


@pytest.mark.parametrize("command", ["export", "sample", "evaluate", "circuits", "trace", "graph", "report", "info"])
def test_unknown_options(refused, command):
    message = refused(command, "--modle", "x", "--ou", "x")
    says(message, "unknown key modle" if command != "report" else "modle")
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize("command", [["trace", "--model", "x", "--promp", "x"], ["report", "--ru", "x"]])
def test_no_option_is_abbreviated(refused, command):
    says(refused(*command), f"unknown key {command[-2][2:]}: did you mean {'prompt' if 'trace' in command else 'run'}?")


def test_unknown_commands(refused, capsys):
    message = refused("tarce", "--model", "x")
    says(message, "unknown command 'tarce': did you mean trace?", *COMMANDS)
    says(refused("xyzzy"), *COMMANDS)
    for arguments, status in ([], 2), (["--help"], 0):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == status
        says(capsys.readouterr().out, *(f"\n  {name} " for name in COMMANDS))


def test_a_machine_without_the_accelerator(make_config, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for accelerator in ("cuda", "gpu"):
        message = refused("fit", "--config", make_config("run", {"trainer.accelerator": accelerator}))
        says(message.lower(), accelerator)
        says(message, "; to train on the CPU add --trainer.accelerator cpu")


@pytest.fixture(params=["below a file", "a file", "/proc"])
def unwritable(request, tmp_path):
    (tmp_path / "file").write_text("mine")
    if request.param == "/proc" and not Path("/proc").is_dir():
        pytest.skip("no /proc on this system")
    return {"below a file": tmp_path / "file" / "out", "a file": tmp_path / "file", "/proc": Path("/proc/nope")}[
        request.param
    ]


class TestNowhereToWrite:
    """Permissions do not bind root, as whom these tests may run."""

    def test_a_run(self, make_config, refused, unwritable):
        message = refused("fit", "--config", make_config("run", {"run_dir": str(unwritable)}))
        says(message, f"cannot write to {unwritable}", "another --run_dir")

    @pytest.mark.parametrize(
        "command",
        [
            ["circuits", "--task", "induction"],
            ["evaluate", "--text", "*.md"],
            ["export", "--ckpt", "last.ckpt"],
            ["graph", "--transcoders", "t", "--prompt", "a"],
            ["report"],
            ["sample"],
            ["trace", "--prompt", "a"],
        ],
        ids=lambda command: command[0],
    )
    def test_a_command(self, refused, monkeypatch, unwritable, command, tmp_path):
        """The models are not even looked for."""
        option = {"export": (), "report": ("--run", tmp_path)}.get(command[0], ("--model", tmp_path))
        name = {"sample": "a.jsonl", "report": "a.html"}.get(command[0], "")
        message = refused(*command, *option, "--out", unwritable / name)
        says(message, f"cannot write to {unwritable}", "another --out")
        assert len(message.splitlines()) == 2

    def test_a_folder_where_a_page_should_be(self, refused, tmp_path):
        says(refused("report", "--run", tmp_path, "--out", tmp_path), "is a folder")

    def test_nothing_is_left_where_it_can_be_written(self, tmp_path):
        check_writable(tmp_path / "a" / "b")
        assert not list(tmp_path.iterdir())

    def test_any_other_path(self, refused, tmp_path):
        (tmp_path / "prompts.txt").mkdir()
        arguments = ("--model", tmp_path, "--against", "none", "--prompts", tmp_path / "prompts.txt")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lit_sparse.commands.trace.find_candidates", lambda *_: [None])
            patch.setattr("lit_sparse.tracing.prompts.prompt_lines", lambda path: path.read_text())
            says(refused("trace", *arguments), "prompts.txt", "directory")


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
        value = self.objective.constraint.per_token(losses)
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
        return self.objective.constraint.per_token(losses) * (float("nan") if len(seen) == 3 else 1.0)

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
        value = self.objective.constraint.per_token(losses)
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
