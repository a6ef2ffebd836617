"""`python main.py info --config …`: what a config would train, the memory of a GPU by part, and the time of a step.

Nothing is loaded or trained: the model is built on the meta device, in seconds at any size. Strategy, devices and
precision are the config's; the options below ask what others would need.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_sparse.attention import gates_of, sparsify
from lit_sparse.commands.fit import ANYWHERE, SparseCLI
from lit_sparse.costs import (
    STRATEGIES,
    Activations,
    FlopsPerToken,
    MemoryPlan,
    ModelSize,
    Partition,
    Precision,
    flops_of_model,
    memory_per_gpu,
    partition_of,
    trace_activations,
)
from lit_sparse.models.adapters import add_lora
from lit_sparse.models.base import load_config
from lit_sparse.training.module import SparseAttentionModule
from lit_sparse.training.pair import choose_trained

ARCHITECTURES = "architectures"
"""Folder beside a config, or above it, with the config.json of hub models, by their names."""


class InfoCLI(SparseCLI):
    """Parses a run's config, keeps its trainer section, and builds the module without what that section asks for."""

    def __init__(self, args: list[str]):
        super().__init__(args, run=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--gpus", type=int | None, default=None, help="default: the trainer's devices x num_nodes")
        parser.add_argument(
            "--strategy",
            type=Literal[tuple(STRATEGIES)] | None,
            default=None,
            help="default: the trainer's strategy",
        )
        parser.add_argument("--tflops", type=float | None, default=None, help="peak TFLOP/s of a GPU, for the time")
        parser.add_argument("--utilisation", type=float, default=0.4, help="share of that peak that is reached")

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        trainer = self.config.trainer
        self.run_trainer = trainer.as_dict()
        for override in ANYWHERE:
            key, value = override.removeprefix("--trainer.").split("=")
            trainer[key] = {"null": None, "1": 1}.get(value, value)
        trainer.plugins = trainer.callbacks = None


class Estimate:
    """Size, memory and operations of a config's model.

    Args:
        module: the run's module, not configured.
        data: its data module.
        trainer: the config's trainer section.
        folders: where to look for `architectures/`.

    Raises:
        ValueError: the model's configuration cannot be read, its family is not supported, or its forward pass cannot
            be traced.
    """

    def __init__(self, module: SparseAttentionModule, data: Any, trainer: dict[str, Any], folders: Sequence[Path]):
        self.module, self.data, self.trainer = module, data, trainer
        self.source = find_architecture(module.base_name, folders)
        self.precision = Precision.of(trainer.get("precision"))
        model = self._built()
        self.config = model.config
        self.flops: FlopsPerToken = flops_of_model(
            model, data.sequence_length, teacher=True, checkpointing=module.execution.activation_checkpointing
        )
        self.optimizer_bytes = _state_bytes(module)
        self._traced: dict[tuple[Any, Any], Activations] = {}

    def _built(self) -> PreTrainedModel:
        module = self.module
        try:
            config = load_config(self.source, trust_remote_code=module.trust_remote_code)
        except ValueError as error:
            raise ValueError(
                f"{error}. Without a network, put the model's config.json into {ARCHITECTURES}/{module.base_name}/ "
                "beside the config or above it, or name a model folder with --model.init_args.model; `fit` needs the "
                f"weights as well: `hf download {module.base_name}` where there is a network fills the cache it reads"
            ) from error
        # In bfloat16, the one type in which PyTorch knows shapes of experts' grouped products.
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, trust_remote_code=module.trust_remote_code
            )
        base = sum(parameter.numel() for parameter in model.parameters())
        sparsify(model, module.gate_config, layers=module.is_gated)
        choose_trained(model, module.train_weights)
        self.gates = sum(parameter.numel() for gate in gates_of(model) for parameter in gate.parameters())
        self.layers, self.heads = len(gates_of(model)), gates_of(model)[0].num_heads
        if module.lora is not None:
            with torch.device("meta"):
                model = add_lora(model, module.lora)
        layers = [sum(p.numel() for p in m.parameters()) for m in model.modules() if _is_layer(m)]
        self.size = ModelSize(
            base=base,
            total=sum(parameter.numel() for parameter in model.parameters()),
            trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
            layer=max(layers, default=0),
            outside=sum(parameter.numel() for parameter in model.parameters()) - sum(layers),
            vocabulary=config.get_text_config().vocab_size,
        )
        return model

    @property
    def partition(self) -> Partition:
        return partition_of(self.trainer.get("strategy"))

    @property
    def gpus(self) -> int:
        """devices x num_nodes; "auto" and -1 count as one."""
        devices = self.trainer.get("devices") or 1
        count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
        return count * int(self.trainer.get("num_nodes") or 1)

    @property
    def micro_batch(self) -> int:
        """Tokens of a micro-batch on one GPU."""
        return int(self.data.batch_size * self.data.sequence_length)

    @property
    def accumulated(self) -> int:
        return int(self.trainer.get("accumulate_grad_batches") or 1)

    def activations(self, partition: Partition) -> Activations:
        dtypes = self.precision.computed(partition), self.precision.autocast(partition)
        if dtypes not in self._traced:
            self._traced[dtypes] = trace_activations(
                self._built(), self.data.batch_size, self.data.sequence_length, dtype=dtypes[0], autocast=dtypes[1]
            )
        return self._traced[dtypes]

    def memory(self, partition: Partition, gpus: int, checkpointing: bool | None = None) -> MemoryPlan:
        return memory_per_gpu(
            self.size,
            self.activations(partition),
            partition,
            gpus=gpus,
            tokens=self.micro_batch,
            precision=self.precision,
            optimizer_bytes=self.optimizer_bytes,
            teacher=self.module.lora is None,
            checkpointing=self.module.execution.activation_checkpointing if checkpointing is None else checkpointing,
        )

    def step_seconds(self, tflops: float, utilisation: float) -> float:
        """One optimizer step, all GPUs working side by side."""
        return self.accumulated * self.micro_batch * self.flops.hardware / (tflops * 1e12 * utilisation)


def info_command(args: Sequence[str]) -> None:
    """Prints the model, the memory of a GPU by part and by strategy, and the time of a step.

    Args:
        args: the command's name and its options.

    Raises:
        ValueError: see `Estimate`; or options out of range.
    """
    cli = InfoCLI(list(args[1:]))
    module, data, asked = cli.model, cli.datamodule, cli.config
    if not isinstance(module, SparseAttentionModule):
        raise ValueError("info describes sparse runs; this config trains another module")
    positive = all(value is None or value > 0 for value in (asked.gpus, asked.tflops))
    if not positive or not 0 < asked.utilisation <= 1:
        raise ValueError("--gpus is at least 1, --tflops positive, and --utilisation in (0, 1]")
    folders = [Path(os.path.abspath(str(path))).parent for path in asked.config or []]
    estimate = Estimate(module, data, cli.run_trainer, folders)
    gpus = asked.gpus or estimate.gpus
    partition = STRATEGIES[asked.strategy] if asked.strategy else estimate.partition
    console = Console()
    table = Table(title=module.base_name, show_header=False)
    rows = _what(estimate) | _memory_rows(estimate, partition, gpus)
    rows |= _time_rows(estimate, gpus, asked.tflops, asked.utilisation)
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    console.print(_by_strategy(estimate, gpus))


def find_architecture(name: str, folders: Sequence[Path]) -> str:
    """Folder or name to read a model's config.json from.

    It is the model's own folder, or `architectures/<name>` beside one of the folders or above it, else the name itself,
    which asks the hub.
    """
    if not (name.startswith("package:") or Path(name).expanduser().is_dir()):
        for folder in folders:
            for place in (folder, *folder.parents):
                if (place / ARCHITECTURES / name / "config.json").is_file():
                    return str(place / ARCHITECTURES / name)
    return name


def _what(estimate: Estimate) -> dict[str, str]:
    module, data, text = estimate.module, estimate.data, estimate.config.get_text_config()
    tokens = f"{data.batch_size} x {data.sequence_length} tokens"
    rows = {
        "family": f"{estimate.config.model_type}, {estimate.layers} layers x {estimate.heads} heads, "
        f"width {text.hidden_size}",
        "weights": f"{estimate.size.base:,}",
        "gates": f"{estimate.gates:,} ({module.gate_config.family}, normalised over "
        f"{module.gate_config.normalisation} keys)",
        "trained": f"{estimate.size.trained:,} ({'adapters (LoRA)' if module.lora else module.train_weights}, gates)",
        "constraint": module.objective.constraint.described(),
        "multiplier": type(module.objective.multiplier).__name__,
        "batch": f"{tokens} a GPU, {estimate.accumulated} accumulated",
    }
    if estimate.source != module.base_name:
        rows["architecture"] = f"{os.path.relpath(estimate.source)} (fit takes {module.base_name} from the hub)"
    return rows


def _memory_rows(estimate: Estimate, partition: Partition, gpus: int) -> dict[str, str]:
    plan, traced = estimate.memory(partition, gpus), estimate.activations(partition)
    checkpointing = estimate.module.execution.activation_checkpointing
    rows = {"strategy": f"{partition.name} on {gpus} GPU{'s' * (gpus > 1)}"}
    rows |= {f"memory: {name}": _gb(size) for name, size in plan.parts.items()}
    rows["memory: in all, each GPU"] = _gb(plan.total)
    if plan.host:
        rows["host memory, each GPU's part"] = _gb(plan.host)
    rows["of activations, gated attention"] = (
        f"{_gb(traced.gated_attention)} without checkpointing"
        if traced.gated_attention
        else "through the reference operator (attention dropout, or a gate of your own): grows with length squared"
    )
    other = "without" if checkpointing else "with"
    rows[f"activations {other} checkpointing"] = _gb(traced.held(not checkpointing))
    return rows


def _time_rows(estimate: Estimate, gpus: int, tflops: float | None, utilisation: float) -> dict[str, str]:
    tokens = gpus * estimate.accumulated * estimate.micro_batch
    rows = {
        "tokens a step": f"{tokens:,}",
        "operations a token": f"{estimate.flops.hardware / 1e9:.2f} GFLOP, of which {estimate.flops.teacher / 1e9:.2f} "
        f"teacher and {estimate.flops.recomputed / 1e9:.2f} recomputed",
    }
    if tflops is None:
        return rows | {"time a step": "give a GPU's peak with --tflops"}
    seconds = estimate.step_seconds(tflops, utilisation)
    return rows | {
        "time a step": f"{seconds:.2f} s, {tokens / seconds:,.0f} tokens/s at {utilisation:.0%} of {tflops:g} TFLOP/s, "
        "without waiting for the network"
    }


def _by_strategy(estimate: Estimate, gpus: int) -> Table:
    table = Table(title=f"GB a GPU on {gpus}, with the config's batch and precision")
    for heading in ("strategy", "no checkpointing", "checkpointing", "on the host"):
        table.add_column(heading, justify="left" if heading == "strategy" else "right")
    for name, partition in STRATEGIES.items():
        try:
            plans = [estimate.memory(partition, gpus, checkpointing) for checkpointing in (False, True)]
        except ValueError:  # no trace in the precision that this strategy computes in
            table.add_row(name, "unknown", "unknown", "")
            continue
        table.add_row(name, *(f"{plan.total / 1e9:.2f}" for plan in plans), f"{plans[0].host / 1e9:.2f}")
    return table


def _state_bytes(module: SparseAttentionModule) -> float:
    """Bytes of optimizer states for each trained weight: what one step on a small tensor leaves behind."""
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    weight.grad = torch.zeros_like(weight)
    optimizer = module.make_optimizer([{"params": [weight]}])
    optimizer.step()
    states = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
    return sum(x.numel() * x.element_size() for x in states if x.numel() > 1) / weight.numel()


def _is_layer(module: torch.nn.Module) -> bool:
    return isinstance(module, GradientCheckpointingLayer)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
