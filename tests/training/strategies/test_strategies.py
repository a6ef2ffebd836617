"""Five optimizer steps on one process and on two, under every strategy: the same numbers. CPU and gloo throughout.

This file is its own worker: `python .../test_strategies.py PLAN` runs the plan's cases on one rank, one after the
other, so that what takes long (imports, process groups) happens once.
"""

import csv
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from lit_sparse import Probability, SparseAttentionModule, from_pretrained
from lit_sparse.commands.main import main
from lit_sparse.common.errors import NonFiniteLossError
from lit_sparse.data import AdditionData
from lit_sparse.models.adapters import LoraConfig
from lit_sparse.objective import KL, EdgeFraction, Lagrangian, LogEdgeFraction
from lit_sparse.training.checkpoint_io import AtomicCheckpointIO
from lit_sparse.training.execution import Execution
from lit_sparse.training.start.calibration import Calibration
from lit_sparse.training.strategies import SparseDeepSpeedStrategy, SparseFSDPStrategy, sharding_of

REPOSITORY = Path(__file__).parents[3]
STEPS, SAVED_AT, GLOBAL_BATCH = 5, 3, 8
TWO = ["ddp", "zero1", "zero2", "zero3", "fsdp2"]
CASES = {  # an epoch has 10 micro-batches: with accumulation of 3 it ends on a third of a step
    "weights": {"accumulations": [1, 2, 3]},
    "bfloat16": {"accumulations": [2], "precision": "bf16-mixed", "activation_checkpointing": True},
    "adapters": {"accumulations": [2], "lora": True, "activation_checkpointing": True, "calibrate": True},
}
TOLERANCE = 2e-6
"""Float32 sums in another order, over five steps; measured: 2e-7 in losses and lambda, 1e-6 in weights after AdamW."""


class CPUDeepSpeed(SparseDeepSpeedStrategy):
    """Without Lightning's guard: ZeRO runs on CPUs with gloo, if slowly."""

    def __init__(self, stage: int, **arguments):
        super().__init__(stage=stage, process_group_backend="gloo", overlap_comm=False, **arguments)
        if stage == 3:  # else everything this small stays whole on each rank
            self.config["zero_optimization"]["stage3_param_persistence_threshold"] = 0

    def setup_environment(self):
        self.setup_distributed()
        self.accelerator.setup_device(self.root_device)

    def setup_distributed(self):
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _setup_model_and_optimizer(self, model, optimizer, lr_scheduler=None):
        import deepspeed  # Lightning's own gives the device's index, which a CPU has not

        engine, optimizer, _, _ = deepspeed.initialize(
            config=self.config,
            model=model,
            model_parameters=[parameter for parameter in model.parameters() if parameter.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        return engine, optimizer


STRATEGIES = {
    "single": lambda: "auto",
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
    "zero1": lambda: CPUDeepSpeed(1),
    "zero2": lambda: CPUDeepSpeed(2),
    "zero3": lambda: CPUDeepSpeed(3),
    "fsdp2": lambda: SparseFSDPStrategy(process_group_backend="gloo"),
    "zero2_offload": lambda: CPUDeepSpeed(2, offload_optimizer=True),
    "zero3_offload": lambda: CPUDeepSpeed(3, offload_optimizer=True, offload_parameters=True),
}


class Notes(Callback):
    """What each micro-batch did on this rank; saves after some step."""

    def __init__(self, save_to=None):
        self.save_to, self.rows, self.saved = save_to, [], False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rows.append({"step": trainer.global_step, "lambda": float(pl_module.objective.multiplier.value)})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        edges = float(trainer.callback_metrics["train/edge_fraction"])
        self.rows[-1] |= {"loss": float(outputs["loss"]) * trainer.accumulate_grad_batches, "edges": edges}
        if self.save_to and trainer.global_step == SAVED_AT and not self.saved:
            self.saved = True
            trainer.save_checkpoint(f"{self.save_to}/full.ckpt")
            trainer.save_checkpoint(f"{self.save_to}/weights.ckpt", weights_only=True)

    def on_train_end(self, trainer, pl_module):
        if self.save_to:
            trainer.save_checkpoint(f"{self.save_to}/end.ckpt", weights_only=True)


class Built(SparseAttentionModule):
    """Notes the largest growth of this process's anonymous memory while student and teacher are built, in bytes."""

    growth = None

    def configure_model(self):
        if self.model is not None:
            return
        gc.collect()  # the model of the case before, which would otherwise be freed while this one grows
        before, largest, done = _anonymous_memory(), 0, threading.Event()

        def watch():
            nonlocal largest
            while not done.wait(0.002):
                largest = max(largest, _anonymous_memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        super().configure_model()
        self.pair.place()
        done.set()
        watcher.join()
        self.growth = max(largest, _anonymous_memory()) - before


class Spoiled(SparseAttentionModule):
    """The loss of step 2 is finite on both ranks, its gradient is not on the second."""

    def constraint_per_token(self, losses):
        value = super().constraint_per_token(losses)
        spoils = self.training and self.trainer.global_step == 2 and self.trainer.global_rank == 1
        return value + 0 * (value - value.detach()).sqrt() if spoils else value


def _anonymous_memory():
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def make_module(case):
    optimizers = {
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    }
    return (Built if case.get("evaluate") else Spoiled if case.get("spoiled") else SparseAttentionModule)(
        case["model"],
        gate=Probability(threshold=0.1, centered=case.get("calibrate", False)),
        # A logarithm is not the mean of the halves' logarithms; but rounding to bfloat16 shows more in it.
        objective=Lagrangian(KL(0.5), (EdgeFraction if case.get("precision") else LogEdgeFraction)(1.0)),
        optimizer=optimizers[case.get("optimizer", "sgd")],
        gate_lr=case.get("gate_lr", 0.5),
        start=Calibration(edge_fraction=0.5) if case.get("calibrate") else None,
        lora=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]) if case.get("lora") else None,
        execution=Execution(activation_checkpointing=case.get("activation_checkpointing", False)),
    )


def make_trainer(case, world_size, **settings):
    return Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=STRATEGIES[case["strategy"]](),
        precision=case.get("precision"),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=case["folder"],
        plugins=[AtomicCheckpointIO()],
        **settings,
    )


def make_data(world_size):
    return AdditionData(digits=1, batch_size=GLOBAL_BATCH // world_size, eval_batch_size=16, held_out=0.2)


def run_case(case, world_size):
    seed_everything(0, verbose=False)
    module = make_module(case)
    notes = Notes(case["folder"] if not case.get("resume") else None)
    trainer = make_trainer(
        case,
        world_size,
        max_steps=STEPS,
        accumulate_grad_batches=case["accumulate"],
        gradient_clip_val=case.get("clip", 1.0),
        limit_val_batches=1 if case.get("calibrate") else 0,
        callbacks=[notes],
    )
    data = make_data(world_size)
    trainer.fit(module, datamodule=data, ckpt_path=f"{case['folder']}/full.ckpt" if case.get("resume") else None)
    start = None if module.state.start is None else module.state.start.metrics()
    return {"rows": notes.rows, "lambda": float(module.objective.multiplier.value), "start": start}


def spoil_case(case, world_size):
    """The error that this rank's run ends with."""
    trainer = make_trainer(case, world_size, max_steps=STEPS, gradient_clip_val=1.0, limit_val_batches=0)
    with pytest.raises(NonFiniteLossError) as error:
        trainer.fit(make_module(case), datamodule=make_data(world_size))
    return {"error": str(error.value)}


def evaluate_case(case, world_size):
    """`validate` and `test`; what this rank thinks of it, and what building took."""
    module, trainer = make_module(case), make_trainer(case, world_size)
    checkpoint = {"ckpt_path": None if case["evaluate"] is True else case["evaluate"]}
    trainer.validate(module, datamodule=make_data(world_size), verbose=False, **checkpoint)
    own = module.last_evaluation.metrics()
    [tested] = trainer.test(module, datamodule=make_data(world_size), verbose=False, **checkpoint)
    return {"validated": own, "tested": tested, "growth": module.growth}


def worker(plan_file):
    plan = json.loads(Path(plan_file).read_text())
    rank = int(os.environ.get("RANK", 0))
    for case in plan["cases"]:
        Path(case["folder"]).mkdir(parents=True, exist_ok=True)
        name = "evaluated" if case.get("evaluate") else "resumed" if case.get("resume") else "whole"
        run = evaluate_case if case.get("evaluate") else spoil_case if case.get("spoiled") else run_case
        result = run(case, plan["world_size"])
        (Path(case["folder"]) / f"{name}{rank}.json").write_text(json.dumps(result))
        print("done", case["folder"], name, flush=True)


def start_ranks(plan_file, world_size, **more):
    """The worker on all ranks; returns the first rank's output once all are done."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "DS_ACCELERATOR": "cpu"}
    processes = []
    for rank in range(world_size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        place |= {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        environment = {name: str(value) for name, value in place.items()} if world_size > 1 else {}
        with open(plan_file.with_suffix(f".{rank}.log"), "w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, str(plan_file)],
                    cwd=REPOSITORY,
                    env={**os.environ, **common, **environment, **more},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    deadline = time.monotonic() + 240
    try:
        while any(process.poll() is None for process in processes):
            failed = any(process.poll() not in (None, 0) for process in processes)
            assert not failed and time.monotonic() < deadline, plan_file.with_suffix(".0.log").read_text()[-4000:]
            time.sleep(0.2)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert all(process.returncode == 0 for process in processes), plan_file.with_suffix(".0.log").read_text()[-4000:]


@pytest.fixture(scope="module")
def tied_folder(tmp_path_factory):
    """A llama whose output layer is its embedding."""
    folder = tmp_path_factory.mktemp("models") / "tied"
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.4, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=39,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(tied_folder, tmp_path_factory):
    """Every kind of run under every strategy, whole and resumed; {(kind, strategy, accumulation): folder}."""
    root, folders = tmp_path_factory.mktemp("strategies"), {}
    for world_size, strategies in ((1, ["single"]), (2, TWO)):
        cases = []
        for kind, settings in CASES.items():
            settings = dict(settings)
            for accumulate in settings.pop("accumulations"):
                for strategy in strategies:
                    folder = folders[kind, strategy, accumulate] = root / f"{kind}-{strategy}-{accumulate}"
                    case = {"strategy": strategy, "accumulate": accumulate, "model": str(tied_folder), **settings}
                    case |= {"folder": str(folder), "optimizer": "sgd" if kind == "weights" else "adamw"}
                    cases += [case, {**case, "resume": True}] if accumulate == 2 else [case]
        plan = root / f"plan{world_size}.json"
        plan.write_text(json.dumps({"cases": cases, "world_size": world_size}))
        start_ranks(plan, world_size)
    return folders


def read(folder, name="whole"):
    """Of each micro-batch the mean over ranks; lambda as it is on each."""
    ranks = [json.loads(file.read_text()) for file in sorted(folder.glob(f"{name}?.json"))]
    rows = range(len(ranks[0]["rows"]))
    means = {key: [sum(r["rows"][i][key] for r in ranks) / len(ranks) for i in rows] for key in ("loss", "edges")}
    lambdas = [[row["lambda"] for row in rank["rows"]] + [rank["lambda"]] for rank in ranks]
    return means, lambdas, [row["step"] for row in ranks[0]["rows"]]


def weights(folder, name="end.ckpt"):
    return AtomicCheckpointIO().load_checkpoint(folder / name)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", TWO)
@pytest.mark.parametrize(("kind", "accumulate"), [("weights", 1), ("weights", 2), ("weights", 3), ("adapters", 2)])
def test_five_steps_are_those_of_one_process(runs, kind, accumulate, strategy):
    means, lambdas, steps = read(runs[kind, "single", accumulate])
    windows = [3, 3, 3, 1, 3] if accumulate == 3 else [accumulate] * STEPS
    assert steps == [step for step, window in enumerate(windows) for _ in range(window)]
    assert len(set(lambdas[0])) == STEPS + 1  # it moved in every step
    own_means, own_lambdas, own_steps = read(runs[kind, strategy, accumulate])
    assert own_steps == steps
    assert own_lambdas[0] == own_lambdas[1]
    assert own_lambdas[0] == pytest.approx(lambdas[0], abs=TOLERANCE)
    assert own_means["loss"] == pytest.approx(means["loss"], abs=TOLERANCE)
    assert own_means["edges"] == pytest.approx(means["edges"], abs=TOLERANCE)
    start, expected = (
        weights(runs[kind, "single", accumulate], "weights.ckpt"),
        weights(runs[kind, "single", accumulate]),
    )
    assert any((start[name] - expected[name]).abs().max() > 100 * TOLERANCE for name in start)
    own = weights(runs[kind, strategy, accumulate])
    assert own.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(own[name], value, rtol=0, atol=TOLERANCE, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_on_one_rank_ends_the_run_on_both(tied_folder, tmp_path):
    common = {"accumulate": 1, "model": str(tied_folder), "spoiled": True}
    cases = [{**common, "strategy": strategy, "folder": str(tmp_path / strategy)} for strategy in TWO]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"cases": cases, "world_size": 2}))
    start_ranks(plan, 2)
    for strategy in TWO:
        for rank in (0, 1):
            error = json.loads((tmp_path / strategy / f"whole{rank}.json").read_text())["error"]
            assert "at step 2" in error and "gradients that are NaN or infinite" in error, strategy


@pytest.mark.slow
@pytest.mark.parametrize("strategy", TWO)
def test_bfloat16_stays_near_and_its_gates_are_exact(runs, strategy):
    """Rounding closes a gate that was open sooner or later, so only the first two steps (four micro-batches) are alike:
    losses of 0.3 within 0.03. All five steps are equal on the ranks, and gates are no bfloat16 numbers."""
    means, _, _ = read(runs["bfloat16", "single", 2])
    own_means, own_lambdas, _ = read(runs["bfloat16", strategy, 2])
    assert own_lambdas[0] == own_lambdas[1]
    assert own_means["loss"][:4] == pytest.approx(means["loss"][:4], abs=0.03)
    gates = [value for name, value in weights(runs["bfloat16", strategy, 2]).items() if "edge_gate" in name]
    assert gates and any((gate != gate.bfloat16().float()).any() for gate in gates)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["single", *TWO])
@pytest.mark.parametrize("kind", list(CASES))
def test_a_resumed_run_is_the_whole_one(runs, kind, strategy):
    means, lambdas, steps = read(runs[kind, strategy, 2])
    cut_means, cut_lambdas, cut_steps = read(runs[kind, strategy, 2], "resumed")
    rest = len(cut_steps)
    assert cut_steps == [step for step in steps if step >= SAVED_AT]
    assert cut_lambdas == [values[-rest - 1 :] for values in lambdas]
    assert cut_means == {key: values[-rest:] for key, values in means.items()}  # bit for bit


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize("kind", ["weights", "adapters"])
def test_a_folder_is_put_together_to_the_same_weights(runs, kind, strategy):
    """From the shards without the processes, and gathered while they ran; tied weights included."""
    folder = runs[kind, strategy, 2]
    assert (folder / "full.ckpt").is_dir() and (folder / "weights.ckpt").is_file()
    assert not list(folder.glob(".*"))  # nothing half-written is left
    gathered, together = weights(folder, "weights.ckpt"), weights(folder, "full.ckpt")
    assert gathered.keys() == together.keys()
    assert all(torch.equal(gathered[name], together[name]) for name in gathered)
    tied = [name for name in together if name.endswith(("embed_tokens.weight", "lm_head.weight"))]
    if kind == "adapters":
        assert not tied and all("lora_" in name or "edge_gate" in name for name in together), "the base is left out"
        return
    embedding, output = tied
    assert torch.equal(together[embedding], together[output])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", TWO)
def test_files_of_a_checkpoint_with_adapters_hold_no_base(runs, tied_folder, strategy):
    """In none of a folder's files, under whatever name."""
    rows = [
        value[0].numpy().tobytes() for value in load_file(tied_folder / "model.safetensors").values() if value.ndim > 1
    ]
    saved = runs["adapters", strategy, 2] / "full.ckpt"
    files = [file for file in saved.rglob("*") if file.is_file()] if saved.is_dir() else [saved]
    assert files and rows
    for file in files:
        content = file.read_bytes()
        assert not any(row in content for row in rows), file


# --- through the command line ------------------------------------------------------------------------------------

CONFIGURED = {
    "ddp": {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"process_group_backend": "gloo"}},
    "zero2": {"class_path": "test_strategies.CPUDeepSpeed", "init_args": {"stage": 2}},
    "zero3": {"class_path": "test_strategies.CPUDeepSpeed", "init_args": {"stage": 3}},
    "fsdp2": {
        "class_path": "lit_sparse.training.strategies.SparseFSDPStrategy",
        "init_args": {"process_group_backend": "gloo"},
    },
}
ENVIRONMENT = {"PYTHONPATH": f"{REPOSITORY}:{Path(__file__).parent}", "DS_ACCELERATOR": "cpu"}


def history(run_dir):
    with open(run_dir / "metrics.csv", newline="") as file:
        return {int(row["step"]): row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "number"), [("ddp", signal.SIGUSR1), ("zero2", signal.SIGTERM)])
def test_a_signal_to_one_of_two_processes_stops_both_and_the_run_goes_on(
    make_config, start_python, tmp_path, strategy, number
):
    steps = 80
    settings = {
        "trainer.devices": 2,
        "trainer.strategy": CONFIGURED[strategy],
        "trainer.max_steps": steps,
        "trainer.val_check_interval": 8,
        "trainer.accumulate_grad_batches": 2,
    }

    def fit(name, *more):
        return start_python("main.py", "fit", "--config", make_config(name, settings), *more, **ENVIRONMENT)

    process = fit("whole")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors

    process = fit("cut")
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert number.name in errors and "--on_existing resume" in errors
    stopped_at = AtomicCheckpointIO().load_checkpoint(last)["global_step"]
    assert 0 < stopped_at < steps

    process = fit("cut", "--on_existing", "resume")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    whole, cut = history(tmp_path / "whole"), history(tmp_path / "cut")
    assert list(whole) == list(cut) and len(whole) == steps
    assert whole == cut  # the first rank's losses, as they are written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "lora"), [("zero2", False), ("zero3", False), ("zero3", True), ("fsdp2", False), ("fsdp2", True)]
)
def test_a_sharded_run_ends_in_a_report_and_exports(
    make_config, start_python, llama_folder, tmp_path, monkeypatch, strategy, lora
):
    settings = {"trainer.devices": 2, "trainer.strategy": CONFIGURED[strategy]}
    if lora:
        settings["model.init_args.lora"] = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]}
    process = start_python("main.py", "fit", "--config", make_config("run", settings), **ENVIRONMENT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    run_dir = tmp_path / "run"
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 6
    assert (run_dir / "report.html").is_file()
    from_pretrained(run_dir / "model")

    last = run_dir / "checkpoints" / "last.ckpt"
    assert last.is_dir()
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    main(["export", "--ckpt", str(last), "--out", str(tmp_path / "out")])
    exported = from_pretrained(tmp_path / "out").state_dict()
    expected = weights(last.parent, last.name)
    if lora:  # merged: the weight of the base and the adapters' product
        own = {name.removeprefix("model.base_model.model."): value for name, value in expected.items()}
        layer = "model.layers.1.self_attn.q_proj"
        a, b = (own[f"{layer}.lora_{side}.default.weight"] for side in "AB")
        assert b.abs().max() > 0
        base = load_file(llama_folder / "model.safetensors")[f"{layer}.weight"]
        torch.testing.assert_close(exported[f"{layer}.weight"], base + 3.0 * b @ a)
        gates = [name for name in exported if "edge_gate" in name]
        assert gates and all(torch.equal(exported[name], own[name]) for name in gates)
        return
    assert {f"model.{name}" for name in exported} == expected.keys()
    assert all(torch.equal(expected[f"model.{name}"], value) for name, value in exported.items())


@pytest.mark.parametrize("name", ["ddp", "zero2", "fsdp2"])
def test_lightnings_own_sharding_is_refused(name):
    own = {"ddp": DDPStrategy, "zero2": DeepSpeedStrategy, "fsdp2": ModelParallelStrategy}[name]()
    if name == "ddp":
        assert not sharding_of(own).shards_weights
        return
    with pytest.raises(ValueError, match=r"set trainer\.strategy\.class_path to lit_sparse"):
        sharding_of(own)


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(sys.argv[1])
