"""The command line, end to end on the tiny run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import results_table
from lit_sparse import SparseAttentionModule, from_pretrained
from lit_sparse.commands.main import main
from lit_sparse.models.digest import digest_of
from lit_sparse.records.digest import same_model
from lit_sparse.records.run import RunRecord, read_history
from lit_sparse.training.callbacks import SparsityProgressBar

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
SUMMARY = {
    "base_ce", "ce", "kl", "edge_fraction_start", "edge_fraction", "edges_per_query", "constraint", "constraint_value",
    "tolerance", "satisfied", "steps", "chosen_step", "tokens", "seconds", "model", "lambda", "gate",
    "edges_per_query_start", "sequence_length", "test_tokens", "centered", "constraint_described",
}  # fmt: skip


def status_of(arguments):
    """The exit status of a command that ends with one."""
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return exit.value.code or 0


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def text_data(text_files, **settings):
    init_args = {"sources": [text_files], "sequence_length": 16, "batch_size": 4, "val_sequences": 8}
    return {"class_path": "lit_sparse.data.TextData", "init_args": {**init_args, "test_sequences": 8, **settings}}


@pytest.fixture(scope="module", params=["addition", "text"])
def finished(request, tmp_path_factory, write_config, text_files):
    """A finished run of each kind of data, which the tests only read."""
    folder = tmp_path_factory.mktemp("finished")
    changes = {"model.init_args.selection": {"exact_match": 0.0}}
    if request.param == "text":
        changes = {"data": text_data(text_files), "model.init_args.start": {"kl": 0.02}}
    main(["fit", "--config", str(write_config(folder, "run", changes))])
    return folder / "run"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses(config, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert status_of(["fit", "--config", config, "--print_config"]) == 0
    resolved, written = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(config.read_text())

    def check(part, whole):
        for key, value in part.items():
            if isinstance(value, dict):
                check(value, whole[key])
            elif isinstance(value, list) and isinstance(value[0], dict):
                for part_of_it, whole_of_it in zip(value, whole[key], strict=True):
                    check(part_of_it, whole_of_it)
            elif key != "class_path":  # resolved to the defining module
                assert whole[key] == value, key

    check(written, resolved)


def test_fit_leaves_a_complete_run_folder(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary.keys() >= SUMMARY
    assert summary["steps"] == 6 and summary["chosen_step"] in (3, 6)
    assert 0 < summary["edge_fraction"] <= summary["edge_fraction_start"] <= 1
    assert summary["constraint_value"] == summary["kl"] and summary["tolerance"] == 0.05
    assert summary["satisfied"] == (summary["constraint_value"] <= summary["tolerance"])
    assert summary["tokens"] == 6 * (4 * 16 if "exact_match" not in summary else 8 * 6)
    for name in ("config.yaml", "metrics.csv", "report.html", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (finished / name).stat().st_size > 0
    assert len(list((finished / "plots").glob("*.png"))) == 3
    assert list((finished / "tensorboard").rglob("events.*"))
    header = (finished / "metrics.csv").read_text().split("\n", 1)[0].split(",")
    assert header[0] == "step" and len(header) == len(set(header))
    expected = {
        *(f"train/{name}" for name in ["loss", "ce", "kl", "constraint", "slack", "lambda", "edge_fraction", "tokens"]),
        *(f"val/{name}" for name in ["ce", "base_ce", "kl", "edge_fraction", "edges_per_query", "constraint", "score"]),
    }
    assert expected | {"train/tokens_per_second"} <= set(header)
    assert ("val/exact_match" in header) == ("exact_match" in summary)


def test_a_summary_is_of_the_test_split_alone(make_config, tmp_path, capsys):
    """Start, end, and a tolerance of the base's cross-entropy plus something; the curves are the validation split's."""
    constraint = {"class_path": "lit_sparse.objective.Absolute", "init_args": {"epsilon": 0.05}}
    config = make_config("run", {"model.init_args.objective.constraint": constraint})
    main(["fit", "--config", str(config), "--model.init_args.gate_lr=0", "--model.init_args.train=none"])
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for name in ("edges_per_query", "edge_fraction", "ce", "kl"):
        assert summary[f"{name}_start"] == summary[name], "nothing was trained"
    assert (summary["sequence_length"], summary["test_tokens"], summary["centered"]) == (6, 20, False)

    history = read_history(tmp_path / "run" / "metrics.csv")
    base_ce = next(row["val/base_ce"] for row in history if "val/base_ce" in row)
    assert abs(base_ce - summary["base_ce"]) > 0.01
    assert summary["tolerance"] == summary["base_ce"] + 0.05
    assert summary["tolerance_in_training"] == pytest.approx(base_ce + 0.05, rel=1e-6)  # float32 in the log
    assert summary["satisfied"] == (summary["ce"] <= summary["base_ce"] + 0.05)

    card = (tmp_path / "run" / "model" / "README.md").read_text()
    for text in (printed, card, (tmp_path / "run" / "report.html").read_text()):
        assert f"{summary['edges_per_query']:.2f}" in text and "T = 6)" in text and "test split" in text
    results_table.main([str(tmp_path / "run")])
    head, _, row = capsys.readouterr().out.splitlines()
    assert head.count("|") == row.count("|") and f"| 6 | {summary['edges_per_query']:.2f} (" in row


def test_the_exported_model_is_the_chosen_one(finished):
    model = from_pretrained(finished / "model")
    best = torch.load(finished / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(best[f"model.{name}"], value) for name, value in model.state_dict().items())
    assert (finished / "model" / "tokenizer.json").is_file()
    record = RunRecord.load(finished / "record")
    assert same_model(str(record.summary.model_digest), digest_of(model)), "reports compare other files with it"


@pytest.mark.parametrize("which", ["best", "last"])
def test_export_gives_the_checkpoints_logits(finished, tmp_path, which, capsys):
    ckpt = finished / "checkpoints" / f"{which}.ckpt"
    before = contents(finished)
    main(["export", "--ckpt", str(ckpt), "--out", str(tmp_path / "out")])
    assert str(tmp_path / "out") in capsys.readouterr().out
    assert contents(finished) == before
    config = yaml.safe_load((finished / "config.yaml").read_text())
    module = SparseAttentionModule(config["model"]["init_args"]["model"])
    module.configure_model()
    module.load_state_dict(torch.load(ckpt, weights_only=True)["state_dict"])
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = module.eval().model(ids, use_cache=False).logits
        found = from_pretrained(tmp_path / "out")(ids, use_cache=False).logits
    assert torch.equal(found, expected)
    described = json.loads((tmp_path / "out" / "sparse.json").read_text())["measured"]
    if which == "last":
        assert described["steps"] == 6


def test_export_refuses_what_it_cannot_do(finished, tmp_path, capsys):
    ckpt = finished / "checkpoints" / "last.ckpt"
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    lonely = tmp_path / "lonely.ckpt"
    shutil.copy(ckpt, lonely)
    garbage = tmp_path / "garbage.ckpt"
    garbage.write_bytes(b"not a checkpoint")
    for arguments, words in [
        (["--ckpt", ckpt, "--out", tmp_path / "used"], ["not empty", "choose another"]),
        (["--ckpt", tmp_path / "none.ckpt", "--out", tmp_path / "a"], ["no checkpoint at", "none.ckpt"]),
        (["--ckpt", lonely, "--out", tmp_path / "b"], ["--config"]),
        (["--ckpt", garbage, "--out", tmp_path / "c"], ["garbage.ckpt", "no readable checkpoint"]),
    ]:
        assert status_of(["export", *arguments]) == 2
        message = capsys.readouterr().err
        assert all(word in message for word in words), message
    assert contents(tmp_path / "used") == {Path("thesis.txt"): b"mine"}


def test_export_and_info_need_not_run_where_training_ran(finished, tmp_path, capsys):
    """A run trained on GPUs is described and exported on a laptop."""
    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["trainer"] |= {"accelerator": "gpu", "devices": 8, "num_nodes": 4, "precision": "16-mixed"}
    elsewhere = tmp_path / "config.yaml"
    elsewhere.write_text(yaml.safe_dump(config))
    ckpt = finished / "checkpoints" / "best.ckpt"
    main(["export", "--ckpt", str(ckpt), "--out", str(tmp_path / "out"), "--config", str(elsewhere)])
    assert from_pretrained(tmp_path / "out") is not None
    main(["info", "--config", str(elsewhere)])
    assert "memory" in capsys.readouterr().out


def test_info_writes_nothing(make_config, tmp_path, capsys):
    config = make_config()
    main(["info", "--config", str(config)])
    printed = capsys.readouterr().out
    # 2 layers of 4 heads, a cutoff each; parameters of the llama: counted by transformers when it was made
    assert "2 layers x 4 heads" in printed and "8 (probability" in printed
    assert "KL divergence from the base model <= 0.05" in printed and "Geco" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_finished_run_can_be_measured_again(finished, command, capsys):
    before = contents(finished)
    ckpt = finished / "checkpoints" / "best.ckpt"
    main([command, "--config", str(finished / "config.yaml"), "--ckpt_path", str(ckpt)])
    printed = capsys.readouterr().out
    assert contents(finished) == before
    if command == "test":  # the summary was measured on the same split
        summary = json.loads((finished / "summary.json").read_text())
        row = next(line for line in printed.splitlines() if "test/edge_fraction" in line)
        # the table prints float32 in full
        assert float(row.replace("│", " ").split()[-1]) == pytest.approx(summary["edge_fraction"], rel=1e-6)
    else:
        assert "val/edge_fraction" in printed


@pytest.mark.usefixtures("unpainted")
class TestExistingFolder:
    @pytest.fixture
    def existing(self, make_config, tmp_path):
        config = make_config()
        main(["fit", "--config", str(config)])
        return config, tmp_path / "run"

    def test_each_choice(self, existing, capsys):
        config, folder = existing
        before = contents(folder)
        capsys.readouterr()
        assert status_of(["fit", "--config", config]) == 2
        message = capsys.readouterr().err
        assert str(folder) in message
        assert all(choice in message for choice in ("--on_existing resume", "--on_existing overwrite", "--run_dir"))
        assert contents(folder) == before

        main(["fit", "--config", str(config), "--on_existing", "resume", "--trainer.max_steps", "9"])
        assert json.loads((folder / "summary.json").read_text())["steps"] == 9
        rows = (folder / "metrics.csv").read_text().splitlines()
        assert len(rows) > len(before[Path("metrics.csv")].splitlines())

        (folder / "left_over.txt").write_text("from the earlier run")
        main(["fit", "--config", str(config), "--on_existing", "overwrite", "--trainer.max_steps", "3"])
        assert json.loads((folder / "summary.json").read_text())["steps"] == 3
        assert not (folder / "left_over.txt").exists()

    def test_overwrite_deletes_only_runs(self, make_config, tmp_path, capsys):
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter1.tex").write_text("mine")
        config = make_config("thesis")
        assert status_of(["fit", "--config", config, "--on_existing", "overwrite"]) == 2
        assert "no run" in capsys.readouterr().err
        assert contents(tmp_path / "thesis") == {Path("chapter1.tex"): b"mine"}

    def test_a_start_that_failed_is_no_run(self, make_config, llama_folder, tmp_path, capsys):
        """Its weights could not be read; once they can, the same command runs."""
        broken = shutil.copytree(llama_folder, tmp_path / "broken")
        (broken / "model.safetensors").unlink()
        config = make_config(changes={"model.init_args.model": str(broken)})
        assert status_of(["fit", "--config", config]) == 2
        assert "cannot load the base model" in capsys.readouterr().err and (tmp_path / "run" / "config.yaml").is_file()
        shutil.copy(llama_folder / "model.safetensors", broken)
        (tmp_path / "run" / "notes.txt").write_text("mine")
        assert status_of(["fit", "--config", config, "--trainer.max_steps", "3"]) == 2  # somebody's file is in it
        (tmp_path / "run" / "notes.txt").unlink()
        main(["fit", "--config", str(config), "--trainer.max_steps", "3"])
        assert (tmp_path / "run" / "summary.json").is_file()

    def test_an_empty_folder_is_no_run(self, make_config, tmp_path):
        (tmp_path / "run").mkdir()
        main(["fit", "--config", str(make_config()), "--trainer.max_steps", "3"])
        assert (tmp_path / "run" / "summary.json").is_file()


def test_a_dry_run_writes_nothing(make_config, tmp_path, capsys):
    main(["fit", "--config", str(make_config()), "--trainer.fast_dev_run", "2"])
    assert not (tmp_path / "run").exists()
    assert not (REPOSITORY / "lightning_logs").exists()


DENSE = {
    "model": {
        "class_path": "lit_sparse.training.DenseModule",
        "init_args": {
            "config": {
                "model_type": "llama",
                "vocab_size": 12,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 16,
            },
            "min_exact_match": 0.0,
        },
    }
}


def test_the_prerequisite_is_run_first(make_config, tmp_path, capsys):
    dense = make_config("dense", DENSE)
    model = tmp_path / "dense" / "model"
    config = make_config("run", {"model.init_args.model": str(model), "prerequisite": str(dense)})
    main(["fit", "--config", str(config)])
    assert (model / "config.json").is_file()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["model"] == str(model)
    assert str(dense) in capsys.readouterr().out
    before = contents(tmp_path / "dense")
    main(["fit", "--config", str(config), "--on_existing", "overwrite"])
    assert contents(tmp_path / "dense") == before  # once is enough


def test_a_dry_run_includes_the_prerequisite_and_leaves_no_trace(make_config, tmp_path):
    dense = make_config("dense", DENSE)
    config = make_config(
        "run", {"model.init_args.model": str(tmp_path / "dense" / "model"), "prerequisite": str(dense)}
    )
    main(["fit", "--config", str(config), "--trainer.fast_dev_run", "2"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense.yaml", "run.yaml"]


def test_a_missing_prerequisite_is_named(make_config, tmp_path, capsys):
    config = make_config("run", {"model.init_args.model": str(tmp_path / "no"), "prerequisite": "nowhere.yaml"})
    assert status_of(["fit", "--config", config]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_the_dense_module_says_when_it_did_not_learn(make_config, capsys):
    unreachable = DENSE | {"model.init_args.min_exact_match": 1.0}
    assert status_of(["fit", "--config", make_config("dense", unreachable)]) == 2
    message = capsys.readouterr().err
    assert "trainer.max_steps" in message and "min_exact_match" in message


def test_a_users_own_module_and_its_hooks(make_config, tmp_path, monkeypatch):
    (tmp_path / "mine_for_this_test.py").write_text(
        "from lit_sparse import SparseAttentionModule\n"
        "class Mine(SparseAttentionModule):\n"
        "    def is_gated(self, layer):\n"
        "        return layer > 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    main(["fit", "--config", str(make_config("run", {"model.class_path": "mine_for_this_test.Mine"}))])
    described = json.loads((tmp_path / "run" / "model" / "sparse.json").read_text())
    assert described["dense_layers"] == [0]


def test_the_terminal_shows_what_matters(make_config, start_python, tmp_path):
    """Lightning's tips and warnings about how it is used here are noise; the table and the paths are not."""
    process = start_python("main.py", "fit", "--config", make_config(), COLUMNS="200")
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "report.html" in out and "Open edges per query and head" in out
    noise = ("tip", "litlogger", "warning", "deprecat", "args parameter", "num_workers", "GPU available", "TPU")
    shown = out + errors
    assert not [word for word in noise if word.lower() in shown.lower()], shown


def test_messages_before_the_first_bar_are_seen(capsys):
    SparsityProgressBar().print("calibrated start:", 0.5)
    assert "calibrated start: 0.5" in capsys.readouterr().out


def test_a_model_with_few_learned_positions(make_config, text_files, character_tokenizer, tmp_path):
    """GPT-2 has no position beyond its last; the report's sentence is longer than this model can read."""
    config = GPT2Config(vocab_size=len(character_tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=20)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    character_tokenizer.save_pretrained(tmp_path / "gpt2")
    changes = {"model.init_args.model": str(tmp_path / "gpt2"), "data": text_data(text_files)}
    main(["fit", "--config", str(make_config("run", changes)), "--trainer.max_steps", "3"])
    assert (tmp_path / "run" / "report.html").is_file()


LEAVING = """
import os, sys, time
from pathlib import Path
import torch
from lit_sparse.commands.main import _leave_together

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
store = torch.distributed.FileStore(str(folder / "store"), 2)
torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
if rank == 0:
    time.sleep(2)
    (folder / "report").touch()
_leave_together()
assert (folder / "report").exists() and not torch.distributed.is_initialized()
"""


def test_no_rank_leaves_before_the_first_one_has_written_its_report(start_python, tmp_path):
    for process in [start_python("-c", LEAVING, rank, tmp_path) for rank in (1, 0)]:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
