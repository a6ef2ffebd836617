"""Data-parallel strategies, and the parts that they split over GPUs: weights, gradients and optimizer states.

ZeRO: arXiv 1910.02054, section 3; offload: arXiv 2101.06840. FSDP2 shards like ZeRO-3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Partition:
    """The parts that a strategy splits over the GPUs.

    optimizer, gradients, weights: True if each GPU holds 1 / GPUs of them.
    engine: True for DeepSpeed, which trains in the low precision and keeps float32 master weights with the optimizer.
    offload_optimizer, offload_weights: True if these shares lie in the host's memory.
    """

    name: str
    optimizer: bool = False
    gradients: bool = False
    weights: bool = False
    engine: bool = False
    offload_optimizer: bool = False
    offload_weights: bool = False


STRATEGIES = {
    partition.name: partition
    for partition in (
        Partition("ddp"),
        Partition("zero1", True, engine=True),
        Partition("zero2", True, True, engine=True),
        Partition("zero2_offload", True, True, engine=True, offload_optimizer=True),
        Partition("zero3", True, True, True, engine=True),
        Partition("zero3_offload", True, True, True, True, True, True),
        Partition("fsdp2", True, True, True),
    )
}
"""Partitions by the name that `info --strategy` takes."""

_LIGHTNING = {
    "auto": "ddp",
    "deepspeed": "zero2",  # Lightning's default stage
    "deepspeed_stage_1": "zero1",
    "deepspeed_stage_1_offload": "zero1",
    "deepspeed_stage_2": "zero2",
    "deepspeed_stage_2_offload": "zero2_offload",
    "deepspeed_stage_3": "zero3",
    "deepspeed_stage_3_offload": "zero3_offload",
    "fsdp": "fsdp2",
}


def partition_of(strategy: str | Mapping[str, Any] | None) -> Partition:
    """The partition of a config's `trainer.strategy`: a name, or a class path with its arguments.

    Raises:
        ValueError: the partition of the strategy is not known.
    """
    if strategy is None or isinstance(strategy, str):
        name = strategy or "auto"
        known = "ddp" if name.startswith("ddp") else _LIGHTNING.get(name, name)
        if known in STRATEGIES:
            return STRATEGIES[known]
    elif "class_path" in strategy:
        name = str(strategy["class_path"]).rsplit(".", 1)[-1]
        arguments = strategy.get("init_args") or {}
        if "DeepSpeed" in name:
            return _zero(arguments)
        if "ModelParallel" in name or "FSDP" in name:
            return STRATEGIES["fsdp2"]
        if "DDP" in name or "SingleDevice" in name:
            return STRATEGIES["ddp"]
    else:
        name = str(strategy)
    raise ValueError(f"info does not know how the strategy {name!r} shards; known: {', '.join(STRATEGIES)}")


def _zero(arguments: Mapping[str, Any]) -> Partition:
    stage = int(arguments.get("stage", 2))
    if stage not in (1, 2, 3):
        raise ValueError(f"DeepSpeed's ZeRO stage is 1, 2 or 3, got {stage}")
    optimizer = bool(arguments.get("offload_optimizer", False))
    weights = stage == 3 and bool(arguments.get("offload_parameters", False))
    name = f"zero{stage}" + ("_offload" if optimizer or weights else "")
    return Partition(name, True, stage >= 2, stage >= 3, True, optimizer, weights)
