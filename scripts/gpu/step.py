"""Training steps on this device: seconds, tokens a second, memory, and what the time goes into.

    python scripts/gpu/step.py smollm2 --out DIR [--seconds 60] [--tiny]    eager, compiled, recorded as a CUDA graph
    python scripts/gpu/step.py recorded --out DIR [--seconds 60]            recorded only, as training will be
    python scripts/gpu/step.py olmo --out DIR [--tiny]                      OLMo-7B's shape, LoRA in bfloat16
    python scripts/gpu/step.py estimate --out DIR [--tiny]                  what `lit_sparse info` says of the same

Each case is a run of Lightning's Trainer with the project's module on random weights and tokens, written to
`DIR/step-CASE.json` when it is measured; one that fails writes its error, and the next goes on.
"""

import argparse
import gc
import json
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from profile_step import profiled
from synthetic import SMOLLM2, TINY, RandomWeights, module_of, text, write_config

from lit_sparse.commands.info import Estimate
from lit_sparse.costs import flops_of_model, partition_of

ROOT = Path(__file__).parent.parent.parent
OLMO = ROOT / "configs/architectures/allenai/OLMo-7B-hf"
PEAK = 989e12  # operations a second of an H100 or H200 SXM in bfloat16, dense (NVIDIA's data sheets)
COMPARED = 5  # the step whose loss is written down: ways to run a batch should agree on it
MIXED, TRUE = "bf16-mixed", "bf16-true"


class Case(NamedTuple):
    """One step to measure."""

    name: str
    folder: Path
    batch: int
    length: int
    precision: str = MIXED
    compiled: bool = False
    recorded: bool = False
    checkpointing: bool = False

    def module(self, device: torch.device) -> RandomWeights:
        dtype = torch.bfloat16 if self.precision == TRUE else torch.float32
        return module_of(self.folder, dtype, device, self.compiled, self.recorded, self.checkpointing)


class StepClock(Callback):
    """Times whole steps: the device is drained before the clock is read, at the first and last of them only, so that
    the processor may run ahead between them as it does in training.

    Args:
        warmup: steps before; the last of them decides how many fit into `seconds`.
        seconds: of measured steps.
    """

    def __init__(self, warmup: int = 4, seconds: float = 3.0):
        self.warmup, self.seconds = warmup, seconds
        self.steps = 0
        self.result: dict[str, float] = {}
        self._begun = 0.0
        self._started = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = self._now()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx in (self.warmup - 1, self.warmup):
            self._begun = self._now()
        if batch_idx == self.warmup and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self.result["first_step_seconds"] = self._now() - self._started
        if batch_idx == self.warmup - 1:
            self.steps = max(3, min(30, int(self.seconds / (self._now() - self._begun))))
        if batch_idx == COMPARED:
            self.result["loss_compared"] = float(outputs["loss"])
        if self.steps and batch_idx == self.warmup + self.steps - 1:
            seconds = (self._now() - self._begun) / self.steps
            self.result |= {
                "steps": self.steps,
                "seconds_a_step": seconds,
                "tokens_a_second": batch["input_ids"].numel() / seconds,
                "train_edge_fraction": float(trainer.callback_metrics.get("train/edge_fraction", float("nan"))),
            }
            if torch.cuda.is_available():
                self.result["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
                self.result["reserved_memory_gb"] = torch.cuda.memory_reserved() / 1e9
            trainer.should_stop = True

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("smollm2", "recorded", "olmo", "estimate"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0, help="no case is begun after these")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the script on a CPU")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as scratch:
        cases = tiny_cases(Path(scratch)) if options.tiny else real_cases(Path(scratch))
        if options.what == "estimate":
            for case in cases["smollm2"] + cases["olmo"]:
                if not case.compiled:
                    attempt(f"estimate-{case.name}", options.out, estimate, case)
            return
        deadline = time.perf_counter() + options.seconds
        best: tuple[float, Case] | None = None
        for case in cases[options.what]:
            if time.perf_counter() > deadline:
                print(f"{case.name}: no time left", flush=True)
                continue
            result = attempt(f"step-{case.name}", options.out, measure, case)
            speed = result.get("tokens_a_second", 0.0)
            if speed and (best is None or speed > best[0]):
                best = speed, case
        if options.what == "smollm2" and best is not None:
            attempt("profile", options.out, profile, best[1], options.out)


def real_cases(scratch: Path) -> dict[str, list[Case]]:
    folder = write_config(scratch / "smollm2", SMOLLM2)
    # What must be known comes first; a compiled case may take a minute to compile.
    return {
        "smollm2": [
            Case("16x2048-compiled", folder, 16, 2048, compiled=True),
            Case("32x512", folder, 32, 512),
            Case("32x512-compiled", folder, 32, 512, compiled=True),
            Case("16x2048", folder, 16, 2048),
            Case("64x512-compiled", folder, 64, 512, compiled=True),
        ],
        "recorded": [
            Case("16x2048-recorded", folder, 16, 2048, compiled=True, recorded=True),
            Case("32x512-recorded", folder, 32, 512, compiled=True, recorded=True),
            Case("32x2048-recorded", folder, 32, 2048, compiled=True, recorded=True),
            Case("64x512-recorded", folder, 64, 512, compiled=True, recorded=True),
        ],
        "olmo": [Case("olmo-1x2048", OLMO, 1, 2048, precision=TRUE, checkpointing=True)],
    }


def tiny_cases(scratch: Path) -> dict[str, list[Case]]:
    folder = write_config(scratch / "tiny", TINY)
    olmo = json.loads((OLMO / "config.json").read_text())
    sizes = {key: TINY[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")}
    small = {**olmo, **sizes, "num_attention_heads": 4, "num_key_value_heads": 4, "eos_token_id": 2}
    return {
        "smollm2": [Case("2x32", folder, 2, 32), Case("1x64", folder, 1, 64)],
        "recorded": [Case("1x32", folder, 1, 32)],
        "olmo": [Case("olmo-1x32", write_config(scratch / "olmo", small), 1, 32, precision=TRUE, checkpointing=True)],
    }


def attempt(name: str, out: Path, what: Any, *arguments: Any) -> dict[str, Any]:
    """Runs it, writes what it returns or its error, and gives its memory back."""
    started = time.perf_counter()
    try:
        result = what(*arguments)
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"[:2000]}
    result |= {"name": name, "device": device_name(), "wall_seconds": round(time.perf_counter() - started, 1)}
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in result.items()}
    print(f"{name}: {shown}", flush=True)
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result


def measure(case: Case) -> dict[str, Any]:
    clock = StepClock()
    module = train(case, clock)
    flops = flops_of_model(module.model, case.length, teacher=True, checkpointing=case.checkpointing)
    described = {"batch": case.batch, "length": case.length, "precision": case.precision, "compiled": case.compiled}
    share = flops.model * clock.result["tokens_a_second"] / PEAK
    return described | clock.result | {"model_flops_a_token": flops.model, "mfu_of_989_tflops": share}


def profile(case: Case, out: Path) -> dict[str, Any]:
    return {"case": case.name} | profiled(lambda callback: train(case, callback), out)


def train(case: Case, callback: Callback) -> RandomWeights:
    """Steps until the callback stops them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = case.module(device)
    vocabulary = json.loads((case.folder / "config.json").read_text())["vocab_size"]
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        precision=case.precision,  # type: ignore[arg-type]
        max_steps=1000,
        max_epochs=-1,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
        callbacks=[callback],
    )
    trainer.fit(module, train_dataloaders=text(case.batch, case.length, vocabulary))
    return module


def estimate(case: Case) -> dict[str, Any]:
    """Memory and time by the formulas of `lit_sparse info`, at 40 % of the device's peak."""
    data = SimpleNamespace(batch_size=case.batch, sequence_length=case.length)
    found = Estimate(case.module(torch.device("cpu")), data, {"precision": case.precision}, [])
    plan = found.memory(partition_of(None), gpus=1)
    return {
        "memory_gb": {name: size / 1e9 for name, size in plan.parts.items()},
        "total_memory_gb": plan.total / 1e9,
        "seconds_a_step_at_40_percent": found.step_seconds(PEAK / 1e12, 0.4),
    }


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
