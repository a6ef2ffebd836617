"""The memory that `info` foretells against what training takes, on the CPU.

    python benchmarks/memory.py [--json FILE]

A llama of 12 million weights trains three steps in a process of its own; measured is the largest resident set (VmHWM)
beyond what the process held after a step of a model a thousandth as large. glibc is told to give freed blocks back at
once, so that what counts is what is alive.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from lightning.pytorch import Trainer
from machine import machine
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from lit_sparse.commands.info import Estimate
from lit_sparse.costs import STRATEGIES
from lit_sparse.models.adapters import LoraConfig
from lit_sparse.training.execution import Execution
from lit_sparse.training.module import SparseAttentionModule

REPOSITORY = Path(__file__).parent.parent
VOCABULARY = 2048


@dataclass(frozen=True)
class Case:
    """One run: what is trained on how many tokens."""

    name: str
    batch: int = 4
    length: int = 512
    precision: str = "32-true"
    checkpointing: bool = False
    lora: bool = False


CASES = {
    case.name: case
    for case in (
        Case("weights, gradients, optimizer", batch=1, length=32),
        Case("activations"),
        Case("activations, checkpointing", checkpointing=True),
        Case("activations, bf16-mixed", precision="bf16-mixed"),
        Case("activations, LoRA", lora=True),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    print("| run | foretold | measured | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES.values():
            foretold, measured = compare(case, Path(folder))
            print(f"| {case.name} | {foretold / 1e6:.0f} MB | {measured / 1e6:.0f} MB | {foretold / measured:.2f} |")
            rows.append({"name": case.name, "foretold": foretold, "measured": measured, "machine": machine()})
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def compare(case: Case, folder: Path) -> tuple[float, float]:
    """Bytes foretold and measured."""
    base = make_model(folder / "model", width=384, layers=6)
    tiny = make_model(folder / "tiny", width=12, layers=1)
    data = SimpleNamespace(batch_size=case.batch, sequence_length=case.length)
    estimate = Estimate(_module(case, base), data, {"precision": case.precision}, [])
    return estimate.memory(STRATEGIES["ddp"], gpus=1).total, _measure(case, base, tiny)


def make_model(folder: Path, width: int, layers: int) -> Path:
    if not folder.is_dir():
        config = LlamaConfig(
            vocab_size=VOCABULARY if width > 100 else 16,
            hidden_size=width,
            intermediate_size=width * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=6,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _module(case: Case, model: Path) -> SparseAttentionModule:
    lora = LoraConfig() if case.lora else None
    return SparseAttentionModule(
        str(model), execution=Execution(activation_checkpointing=case.checkpointing), lora=lora
    )


def _measure(case: Case, model: Path, tiny: Path) -> float:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)]),
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    code = "import json, sys; import memory; memory.train_and_report(*json.loads(sys.argv[1]))"
    argument = json.dumps([asdict(case), str(model), str(tiny)])
    done = subprocess.run(
        [sys.executable, "-c", code, argument], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout.splitlines()[-1])


def train_and_report(case: dict, model: str, tiny: str) -> None:
    """In the measured process: prints the bytes beyond the baseline."""
    settings = Case(**case)
    _train(Case(**{**case, "batch": 1, "length": 8}), Path(tiny), 16)
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident set starts again from the present one
    baseline = _status("VmRSS")
    _train(settings, Path(model), VOCABULARY)
    print(_status("VmHWM") - baseline)


def _train(case: Case, model: Path, vocabulary: int) -> None:
    ids = torch.randint(vocabulary, (case.batch, case.length + 1), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(case.length).expand(case.batch, -1)
    batch = {"input_ids": ids[:, :-1], "position_ids": positions, "labels": ids[:, 1:].contiguous()}
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=3,
        precision=case.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(_module(case, model), DataLoader([batch] * 3, batch_size=None))


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


if __name__ == "__main__":
    main()
