"""Checkpoints of a run whose base model is frozen: they hold what is trained, and belong to that base only."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_sparse import SparseAttentionModule, from_pretrained
from lit_sparse.attention import gates_of
from lit_sparse.commands.main import main
from lit_sparse.models.adapters import LoraConfig
from lit_sparse.models.digest import digest_of
from lit_sparse.records.digest import same_model
from lit_sparse.records.run import RunRecord
from lit_sparse.training.checkpoint_io import AtomicCheckpointIO
from lit_sparse.training.frozen import completed, frozen_weights, left_out_of

pytestmark = pytest.mark.usefixtures("unpainted")

LORA = {"model.init_args.lora": {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "down_proj"]}}
GATES_ALONE = {"model.init_args.train": "none"}
ATTENTION_ALONE = {"model.init_args.train": "attention"}
LEARNT = {"lora": (LORA, ("lora_", "edge_gate")), "none": (GATES_ALONE, ("edge_gate",)),
          "attention": (ATTENTION_ALONE, ("self_attn",))}  # fmt: skip


def read(path):
    return AtomicCheckpointIO().load_checkpoint(path)


def status_of(arguments):
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture(scope="module")
def finished(write_config, tmp_path_factory):
    """A run with adapters: its config and its folder."""
    folder = tmp_path_factory.mktemp("frozen")
    config = write_config(folder, "run", LORA)
    main(["fit", "--config", str(config)])
    return config, folder / "run"


@pytest.mark.parametrize("kind", LEARNT)
def test_checkpoints_hold_what_is_trained(make_config, tmp_path, kind):
    changes, learnt = LEARNT[kind]
    main(["fit", "--config", str(make_config("run", changes))])
    for name in ("best", "last"):
        checkpoint = read(tmp_path / "run" / "checkpoints" / f"{name}.ckpt")
        assert checkpoint["state_dict"] and all(any(part in key for part in learnt) for key in checkpoint["state_dict"])
        assert any("embed_tokens" in key for key in left_out_of(checkpoint)["names"])
    from_pretrained(tmp_path / "run" / "model")


def test_where_everything_learns_everything_is_there(make_config, tmp_path):
    main(["fit", "--config", str(make_config())])
    checkpoint = read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert left_out_of(checkpoint) is None
    assert any("embed_tokens" in key for key in checkpoint["state_dict"])


def test_gates_that_do_not_learn_are_kept(llama_folder):
    """Calibration has set them: no base model gives them again."""
    module = SparseAttentionModule(
        str(llama_folder), gate={"family": "probability", "threshold": 0.1, "learnable": False}, lora=LoraConfig(r=2)
    )
    module.configure_model()
    fixed = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    assert any("edge_gate" in name for name in fixed)
    assert not any("edge_gate" in name for name in frozen_weights(module, module.model))


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_checkpoint_is_exported_and_measured_again(finished, tmp_path, which, capsys):
    config, run = finished
    ckpt = run / "checkpoints" / f"{which}.ckpt"
    assert status_of(["export", "--ckpt", ckpt, "--out", tmp_path / "out"]) == 0
    exported, kept = from_pretrained(tmp_path / "out"), read(ckpt)["state_dict"]
    assert (tmp_path / "out" / "model.sparse.safetensors").is_file()
    for layer, gate in enumerate(gates_of(exported)):
        name = next(name for name in kept if f"layers.{layer}.self_attn.edge_gate.log_threshold" in name)
        assert torch.equal(gate.log_threshold, kept[name])
    assert any(value.abs().max() > 0 for name, value in kept.items() if "lora_B" in name)
    for command in ("validate", "test"):
        capsys.readouterr()
        assert status_of([command, "--config", config, "--ckpt_path", ckpt]) == 0
        assert "edge_fraction" in capsys.readouterr().out


@pytest.fixture
def other_base(llama_folder, tmp_path):
    """A model of the same shapes whose embedding is another."""
    folder = tmp_path / "other"
    shutil.copytree(llama_folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].roll(1, dims=0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_another_base_is_refused(write_config, llama_folder, other_base, tmp_path, capsys):
    """Under the same name, as where a folder was made again: another name is refused by itself."""
    base = tmp_path / "base"
    shutil.copytree(llama_folder, base)
    config = write_config(tmp_path, "run", {**LORA, "model.init_args.model": str(base)})
    main(["fit", "--config", str(config)])
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    resumed = ["fit", "--config", config, "--on_existing", "resume", "--trainer.max_steps", "7"]
    assert status_of(resumed) == 0
    shutil.rmtree(base)
    shutil.copytree(other_base, base)
    for command in (
        [*resumed[:-1], "8"],
        ["validate", "--config", config, "--ckpt_path", last],
        ["export", "--ckpt", last, "--out", tmp_path / "out"],
    ):
        capsys.readouterr()
        assert status_of(command) == 2, command
        message = capsys.readouterr().err
        assert "trained on another base model" in message and str(base) in message


def test_a_checkpoint_that_lacks_more_than_it_says_is_refused(finished, capsys, tmp_path):
    config, run = finished
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    gone = next(name for name in checkpoint["state_dict"] if "lora_A" in name)
    del checkpoint["state_dict"][gone]
    torch.save(checkpoint, tmp_path / "less.ckpt")
    assert status_of(["validate", "--config", config, "--ckpt_path", tmp_path / "less.ckpt"]) == 2
    assert f"{gone} is missing there" in capsys.readouterr().err


def test_a_checkpoint_with_all_weights_loads_as_it_did(finished, llama_folder, tmp_path):
    """As earlier versions wrote them: the base's weights are taken from there."""
    config, run = finished
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    names = checkpoint["lit_sparse"].pop("left_out")["names"]
    module = SparseAttentionModule(str(llama_folder), lora=LoraConfig(**LORA["model.init_args.lora"]))
    module.configure_model()
    own = module.state_dict()
    checkpoint["state_dict"] = completed(checkpoint["state_dict"], module, names)
    assert checkpoint["state_dict"].keys() == own.keys()
    norm = next(name for name in names if name.endswith("model.norm.weight"))
    checkpoint["state_dict"][norm] = own[norm] + 1
    torch.save(checkpoint, tmp_path / "whole.ckpt")
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    assert module.state_dict()[norm].mean() == pytest.approx(2.0)
    assert status_of(["fit", "--config", config, "--ckpt_path", tmp_path / "whole.ckpt", "--run_dir", tmp_path / "on",
                      "--trainer.max_steps", "8"]) == 0  # fmt: skip


def test_lightnings_own_way_to_load_works(finished, llama_folder):
    _, run = finished
    loaded = SparseAttentionModule.load_from_checkpoint(
        run / "checkpoints" / "best.ckpt",
        model=str(llama_folder),
        lora=LoraConfig(**LORA["model.init_args.lora"]),
        weights_only=True,
    )
    kept = read(run / "checkpoints" / "best.ckpt")["state_dict"]
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in kept.items())


class OwnBase(SparseAttentionModule):
    """A base that its name does not give."""

    def build_base(self):
        base = super().build_base()
        with torch.no_grad():
            base.get_input_embeddings().weight.mul_(1.5)
        return base


def test_a_model_folder_holds_no_base_that_its_name_gives(finished, write_config, tmp_path):
    _, run = finished
    assert not (run / "adapters").exists()
    files = {file.name for file in (run / "model").iterdir()}
    assert {"adapters.safetensors", "adapters.json", "gates.safetensors"} <= files
    assert "model.sparse.safetensors" not in files
    record = RunRecord.load(run / "record")
    assert same_model(str(record.summary.model_digest), digest_of(from_pretrained(run / "model")))

    own = write_config(tmp_path, "own", {**LORA, "model.class_path": f"{__name__}.OwnBase"})
    sys.modules.setdefault(__name__, sys.modules[OwnBase.__module__])
    main(["fit", "--config", str(own)])
    embedding = from_pretrained(tmp_path / "own" / "model").get_input_embeddings().weight
    other = from_pretrained(run / "model").get_input_embeddings().weight
    assert torch.equal(embedding, other * 1.5), "the model folder holds the base that was made sparse"
    assert (tmp_path / "own" / "adapters" / "adapters.safetensors").is_file()


def test_a_run_goes_on_from_the_model_folder_of_another(finished, write_config, tmp_path):
    _, run = finished
    config = write_config(tmp_path, "next", {**LORA, "model.init_args.start": str(run / "model")})
    main(["fit", "--config", str(config)])
    start = json.loads((tmp_path / "next" / "summary.json").read_text())
    end = json.loads((run / "summary.json").read_text())
    assert start["edge_fraction_start"] == pytest.approx(end["edge_fraction"], abs=0.02)
