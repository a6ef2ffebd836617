"""FSDP2 through Lightning."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from lit_sparse.callbacks.checkpoints import AtomicCheckpointIO, is_weights_only, replacing_folder
from lit_sparse.strategies.fully_shard import shard_model
from lit_sparse.strategies.sharding import Sharding


class SparseFSDPStrategy(Sharding, ModelParallelStrategy):
    """Weights, gradients and optimizer state sharded over all devices, gathered a layer at a time.

    Args:
        process_group_backend: "nccl" or "gloo"; None chooses by device.
        timeout_minutes: how long a rank waits for the others.
    """

    shards_weights = True

    def __init__(self, process_group_backend: str | None = None, timeout_minutes: float = 30.0):
        super().__init__(
            tensor_parallel_size=1,
            process_group_backend=process_group_backend,
            timeout=timedelta(minutes=timeout_minutes),
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, model: nn.Module) -> None:
        assert self.precision_plugin is not None
        dtype = torch.bfloat16 if str(self.precision_plugin.precision).startswith("bf16") else None
        shard_model(model, self.device_mesh["data_parallel"], dtype)

    def place_frozen(self, model: nn.Module, device: torch.device) -> None:
        if not isinstance(model, FSDPModule):
            shard_model(model, self.device_mesh["data_parallel"])

    def whole_state_dict(self) -> dict[str, Tensor]:
        """All weights on the CPU of the first rank; empty on the others. All ranks must call it."""
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return dict(get_model_state_dict(self.model, options=options))  # type: ignore[arg-type]

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        path = Path(self.broadcast(filepath))
        if is_weights_only(checkpoint):
            weights = {**checkpoint, "state_dict": self.whole_state_dict()}
            if self.is_global_zero:
                AtomicCheckpointIO().save_checkpoint(weights, path)
            self.barrier()
            return
        with replacing_folder(path, self.is_global_zero, self.barrier) as folder:
            super().save_checkpoint(checkpoint, folder, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return super().load_checkpoint(checkpoint_path, weights_only=True)
