"""FSDP2 through Lightning."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lit_sparse.training.frozen import left_out_of
from lit_sparse.training.strategies.fully_shard import shard_model
from lit_sparse.training.strategies.own_shards import put_stand_ins, reading_own_shards
from lit_sparse.training.strategies.sharding import Sharding


class SparseFSDPStrategy(Sharding, ModelParallelStrategy):
    """FSDP2: weights, gradients and optimizer state sharded over all devices, gathered one layer at a time.

    Each rank reads its own share of the base model, and of the teacher, from safetensors. A model that a subclass
    builds in another way is whole on each rank's CPU first.

    Args:
        process_group_backend: "nccl" or "gloo"; None chooses by device.
        timeout_minutes: time that a rank waits for the others.
    """

    shards_weights = True
    born_sharded = True

    def __init__(self, process_group_backend: str | None = None, timeout_minutes: float = 30.0):
        super().__init__(
            tensor_parallel_size=1,
            process_group_backend=process_group_backend,
            timeout=timedelta(minutes=timeout_minutes),
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def _mesh(self) -> DeviceMesh:
        return self.device_mesh["data_parallel"]

    @property
    def _low_precision(self) -> torch.dtype | None:
        assert self.precision_plugin is not None
        return torch.bfloat16 if str(self.precision_plugin.precision).startswith("bf16") else None

    @contextmanager
    def building(self) -> Iterator[None]:
        with reading_own_shards(self._mesh):
            yield

    @contextmanager
    def running(self, model: nn.Module) -> Iterator[None]:
        put_stand_ins(model)
        yield

    def shard(self, model: nn.Module) -> None:
        shard_model(model, self._mesh, self._low_precision)

    def place_frozen(self, model: nn.Module, device: torch.device) -> None:
        if not isinstance(model, FSDPModule):
            shard_model(model, self._mesh, kept_dtype=self._low_precision)

    def own_gradients(self, module: nn.Module) -> list[Tensor]:
        return [g.to_local() if isinstance(g, DTensor) else g for g in super().own_gradients(module)]

    @contextmanager
    def whole(self, tensor: Tensor) -> Iterator[Tensor]:
        yield tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def save_folder(self, checkpoint: dict[str, Any], folder: Path) -> None:
        super().save_checkpoint(checkpoint, folder)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        self.save_sharded(checkpoint, filepath)

    def check_resumable(self, path: Path) -> None:
        """Checks a checkpoint, which may come from any number of processes, because shards are cut anew."""
        if not (path / "meta.pt").is_file():
            raise ValueError(
                f"{path} is no folder that an FSDP2 run wrote, so it has no sharded optimizer state to resume from; "
                "resume under the strategy that wrote it, or start a new run from the exported model"
            )

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads a checkpoint: each rank's shards from a folder, or all weights from a file. Weights that the checkpoint
        leaves out are not changed."""
        path = Path(self.broadcast(checkpoint_path))
        file = path / "meta.pt" if path.is_dir() else path
        if not file.is_file():
            return super().load_checkpoint(path, weights_only=True)  # which says what is wrong
        checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", mmap=path.is_file(), weights_only=True)
        left_out = left_out_of(checkpoint)
        if left_out is None:
            return super().load_checkpoint(path, weights_only=True)
        assert self.model is not None
        kept = {name: own for name, own in self.model.state_dict().items() if name not in left_out["names"]}
        if path.is_file():
            state = checkpoint.pop("state_dict")
            if missing := next((name for name in kept if name not in state), None):
                raise ValueError(f"this checkpoint belongs to another model: {missing} is missing there")
            set_model_state_dict(self.model, state, options=StateDictOptions(full_state_dict=True))
            return checkpoint
        load({"state_dict": kept}, checkpoint_id=path)  # into the model's own shards
        for index, optimizer in enumerate(self.optimizers):
            saved = {f"optimizer_{index}": get_optimizer_state_dict(self.model, optimizer)}
            load(saved, checkpoint_id=path)
            set_optimizer_state_dict(self.model, optimizer, saved[f"optimizer_{index}"])
        return checkpoint
