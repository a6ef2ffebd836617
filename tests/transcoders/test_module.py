"""Training a transcoder from the command line: it learns, resumes exactly, writes its folder, and refuses mistakes."""

import json
import math

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from lit_sparse.attention import sparsify
from lit_sparse.commands.main import main
from lit_sparse.data import AdditionData
from lit_sparse.models.adapters import LoraConfig, add_lora
from lit_sparse.models.base import load_model
from lit_sparse.models.compared import load_any
from lit_sparse.models.digest import digest_of
from lit_sparse.models.sparse_folder import export_adapters, export_sparse
from lit_sparse.records.digest import same_model
from lit_sparse.training.callbacks import SparsityProgressBar
from lit_sparse.transcoders import TranscoderConfig, TranscoderModule, describe_transcoder, load_transcoder
from lit_sparse.transcoders.activations import MLPs

pytestmark = pytest.mark.usefixtures("unpainted")


def summary_of(folder):
    return json.loads((folder / "transcoder/summary.json").read_text())


def checkpoint_of(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit):
        main([str(argument) for argument in arguments])
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(write_transcoder_config, tmp_path_factory):
    """A finished run, which the tests only read."""
    folder = tmp_path_factory.mktemp("finished")
    changes = {"trainer.max_steps": 60, "trainer.val_check_interval": 30}
    main(["fit", "--config", str(write_transcoder_config(folder, "run", changes))])
    return folder / "run"


def test_a_run_writes_the_transcoder_and_what_it_is_worth(finished, llama_folder):
    summary = summary_of(finished)
    assert {
        "model", "tokens", "seconds", "features", "l0", "l0_by_layer", "explained_variance",
        "explained_variance_by_layer", "dead_fraction", "ce", "replacement_ce", "mean_ablation_ce",
    } <= summary.keys()  # fmt: skip
    assert summary["tokens"] == 60 * 8 * 6 and summary["features"] == 16
    assert 0 < summary["l0"] <= 4 and 0.2 < summary["explained_variance"] < 1

    # The saved transcoder reads and writes raw values: measured again from the folder, on the same text.
    test = AdditionData(digits=1, held_out=0.2).splits.test
    inputs, outputs = MLPs(load_any(str(llama_folder), dtype=torch.float32)).capture(test.batch(torch.arange(10)))
    with torch.no_grad():
        error = outputs - load_transcoder(finished / "transcoder")(inputs)
    spread = outputs - outputs.mean((1, 2), keepdim=True)
    explained = 1 - error.pow(2).sum((1, 2, 3)) / spread.pow(2).sum((1, 2, 3))
    assert explained.tolist() == pytest.approx(summary["explained_variance_by_layer"], abs=1e-3)


def test_examples_are_contexts_of_held_out_text(finished):
    transcoder = load_transcoder(finished / "transcoder")
    features = json.loads((finished / "transcoder/examples.json").read_text())["features"]
    assert features
    for name, contexts in features.items():
        layer, feature = map(int, name.split("_"))
        assert layer < transcoder.layers and feature < transcoder.config.features and 1 <= len(contexts) <= 5
        peaks = [context["values"][context["peak"]] for context in contexts]
        assert peaks == sorted(peaks, reverse=True) and peaks[-1] > 0
        for context in contexts:
            assert len(context["tokens"]) == len(context["values"]) == 6
            assert max(context["values"]) == context["values"][context["peak"]]
            assert set("".join(context["tokens"])) <= set("0123456789+=")


@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(transcoder_config, tmp_path, activation):
    kind = {"features": 16, "activation": activation, **({"k": 4} if activation == "topk" else {})}
    changes = {"model.init_args.transcoder": kind, "model.init_args.dead_after": 100}
    if activation == "jumprelu":
        changes["model.init_args.sparsity"] = {"ramp": 0.0}  # else it goes by the run's length, which differs
    whole, parts = transcoder_config("whole", changes), transcoder_config("parts", changes)
    main(["fit", "--config", str(whole)])
    main(["fit", "--config", str(parts), "--trainer.max_steps", "3"])
    assert checkpoint_of(tmp_path / "parts")["global_step"] == 3
    main(["fit", "--config", str(parts), "--on_existing", "resume"])
    expected, found = (checkpoint_of(tmp_path / name) for name in ("whole", "parts"))
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name
    assert found["lit_sparse"]["tokens"] == expected["lit_sparse"]["tokens"] == 6 * 48
    assert not any(name.startswith(("_mlps", "_raw", "model.")) for name in found["state_dict"])


def test_dead_features_are_counted_and_revived(llama_folder):
    model = TranscoderModule(str(llama_folder), TranscoderConfig(16, k=4), dead_after=100)
    model.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    active = torch.zeros(2, 60, 16, dtype=torch.bool)
    active[0, 5, 3] = True
    model._count(active)
    assert not model.dead.any()
    model._count(active)
    assert model.dead.sum() == 31 and not model.dead[0, 3]
    active[1, 0, 7] = True
    model._count(active)
    assert model.dead.sum() == 30 and model.state.tokens == 180


def test_a_sparse_model_is_read_with_its_gates(transcoder_config, tmp_path, llama_folder, character_tokenizer):
    sparse = sparsify(load_model(str(llama_folder)), {"family": "probability", "threshold": 0.2})
    export_sparse(sparse, tmp_path / "sparse", measured={"model": str(llama_folder)}, tokenizer=character_tokenizer)
    main(["fit", "--config", str(transcoder_config("dense"))])
    main(["fit", "--config", str(transcoder_config("run", {"model.init_args.model": str(tmp_path / "sparse")}))])
    dense, found = summary_of(tmp_path / "dense"), summary_of(tmp_path / "run")
    assert found["model"] == str(tmp_path / "sparse")
    assert same_model(found["model_digest"], digest_of(sparse))
    ours = describe_transcoder(tmp_path / "run/transcoder")["lit_sparse"]
    assert ours["model_digest"] == found["model_digest"] != dense["model_digest"]
    assert not math.isclose(found["ce"], dense["ce"], rel_tol=1e-3), "closed edges change the model's own CE"


def test_training_from_a_cache(transcoder_config, tmp_path):
    data = {
        "class_path": "lit_sparse.transcoders.CachedActivations",
        "init_args": {
            "data": {
                "class_path": "lit_sparse.data.AdditionData",
                "init_args": {"digits": 1, "eval_batch_size": 16, "held_out": 0.2},
            },
            "folder": str(tmp_path / "cache"), "shard_tokens": 72, "batch_tokens": 48,
        },
    }  # fmt: skip
    changes = {"data": data, "trainer.max_steps": 40, "trainer.val_check_interval": 4}
    main(["fit", "--config", str(transcoder_config("run", changes))])
    assert summary_of(tmp_path / "run")["explained_variance"] > 0.2
    assert len(list((tmp_path / "cache").glob("shard_*"))) == 6


def test_progress_bar_and_logs(finished):
    import csv

    metrics = {}
    for row in csv.DictReader((finished / "logs/version_0/metrics.csv").open()):
        metrics |= {name: torch.tensor(float(value)) for name, value in row.items() if value}
    assert metrics["train/tokens_per_second"] > 0 and "layers/explained_variance_01" in metrics

    class Shown:
        callback_metrics = metrics

    shown = SparsityProgressBar().get_metrics(Shown, None)
    assert {"unexplained", "L0", "dead", "explained", "replaced CE", "tok/s"} <= shown.keys()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model.init_args.model": "/nowhere"}, "no model folder"),
        ({"model.init_args.transcoder": {"features": 4, "k": 5}}, "k lies between 1 and features"),
        ({"model.init_args.dead_after": 0}, "dead_after"),
        ({"model.init_args.revival": -1.0}, "revival must not be negative"),
        ({"model.init_args.sparsity": {"weight": 0.1}}, "sparsity is for activation: jumprelu"),
    ],
)
def test_mistakes_end_in_one_line(transcoder_config, capsys, changes, words):
    message = error_of(capsys, "fit", "--config", transcoder_config("run", changes))
    assert words in message and "Traceback" not in message


def test_a_checkpoint_of_another_transcoder_is_refused(transcoder_config, make_config, tmp_path, capsys):
    main(["fit", "--config", str(transcoder_config("run"))])
    other = transcoder_config("run", {"model.init_args.transcoder": {"features": 8, "k": 4}})
    assert "idle is (2, 16) there and (2, 8) here" in error_of(
        capsys, "fit", "--config", other, "--on_existing", "resume"
    )
    sparse_run = make_config("sparse")
    main(["fit", "--config", str(sparse_run)])
    last = tmp_path / "sparse/checkpoints/last.ckpt"
    message = error_of(capsys, "fit", "--config", transcoder_config("third"), "--ckpt_path", last)
    assert "not written by a transcoder run" in message


def test_the_tokenizer_of_adapters_is_their_bases(llama_folder, tmp_path):
    from jsonargparse import Namespace

    from lit_sparse.commands.fit import _fill_tokenizer

    model = add_lora(sparsify(load_model(str(llama_folder)), {}), LoraConfig(r=2))
    export_adapters(model, tmp_path / "adapters", measured={"model": "package:base"})
    inner = Namespace(init_args=Namespace(tokenizer=None))
    config = Namespace(
        model=Namespace(init_args=Namespace(model=str(tmp_path / "adapters"))),
        data=Namespace(init_args=Namespace(model=None, data=inner)),
    )
    _fill_tokenizer(config)
    assert inner.init_args.tokenizer == "package:base"
    assert config.data.init_args.model == str(tmp_path / "adapters")


def test_the_run_keeps_its_resolved_config(finished):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["model"]["init_args"]["transcoder"] == {
        "features": 16, "cross_layer": True, "activation": "topk", "k": 4,
    }  # fmt: skip
