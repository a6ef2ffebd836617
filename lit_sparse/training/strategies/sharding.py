"""Interface between the module and a strategy besides training: weights while they are built, read and written."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from lit_sparse.training.checkpoint_io import AtomicCheckpointIO, is_weights_only, replacing_folder


class Sharding:
    """Default without sharding, in which every rank holds the whole model: a single process, and DDP. Strategies that
    shard the model override it."""

    shards_weights = False
    """True if no rank holds all weights."""

    born_sharded = False
    """True if models are sharded while they are read, so that they cannot be copied or cast."""

    @contextmanager
    def building(self) -> Iterator[None]:
        """Context in which base models are loaded."""
        yield

    @contextmanager
    def running(self, model: nn.Module) -> Iterator[None]:
        """Context in which a newly built model can run a forward pass."""
        yield

    def shard(self, model: nn.Module) -> None:
        """Shards the student with its gates and adapters. It is called once, before there is an optimizer."""

    def place_frozen(self, model: nn.Module, device: torch.device) -> None:
        """Makes the teacher ready to run. It is called before each use."""
        model.to(device)

    def weights_written(self) -> None:
        """Updates the strategy after something other than the optimizer changed weights (calibration sets cutoffs)."""

    def own_gradients(self, module: nn.Module) -> list[Tensor]:
        """The gradients that this rank holds."""
        return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]

    def gradients_are_finite(self, module: nn.Module) -> Tensor:
        """True if this rank's gradients of the optimizer step that just ended were all finite, as a 0-d boolean on the
        device, so that nothing waits for it."""
        return torch.nn.utils.get_total_norm(self.own_gradients(module)).isfinite()

    def check_resumable(self, path: Path) -> None:
        """Checks a checkpoint before anything is built.

        Raises:
            ValueError: training cannot resume from this checkpoint under this strategy.
        """
        if path.is_dir():
            raise ValueError(
                f"{path} is a folder that a run under ZeRO or FSDP2 wrote; resume under the strategy that wrote it, or "
                "start a new run from the exported model"
            )

    @contextmanager
    def whole(self, tensor: Tensor) -> Iterator[Tensor]:
        """Context with the whole of a weight of which this rank may hold a part. All ranks must enter it."""
        yield tensor

    def whole_state_dict(self: Any, names: Iterable[str]) -> dict[str, Tensor]:
        """Weights of these names, on the CPU of the first rank; empty on the others. All ranks must call it."""
        state = self.lightning_module.state_dict(keep_vars=True)
        wanted = {name: state[name] for name in names}
        copies: dict[int, Tensor] = {}  # tied weights stay one tensor
        for tensor in {id(tensor): tensor for tensor in wanted.values()}.values():
            with self.whole(tensor) as whole:
                if self.is_global_zero:
                    copies[id(tensor)] = whole.detach().to("cpu", copy=True)
        return {name: copies[id(tensor)] for name, tensor in wanted.items()} if self.is_global_zero else {}

    def save_folder(self, checkpoint: dict[str, Any], folder: Path) -> None:
        """Writes what resuming needs, one part per rank. All ranks must call it."""
        raise NotImplementedError

    def save_sharded(self: Any, checkpoint: dict[str, Any], filepath: Any) -> None:
        """A strategy's `save_checkpoint`. Weights alone are one file. All that resuming needs is a folder, which
        replaces an earlier one as a whole."""
        path = Path(self.broadcast(filepath))
        if is_weights_only(checkpoint):
            weights = {**checkpoint, "state_dict": self.whole_state_dict(checkpoint["state_dict"])}
            if self.is_global_zero:
                AtomicCheckpointIO().save_checkpoint(weights, path)
            self.barrier()
            return
        with replacing_folder(path, self.is_global_zero, self.barrier) as folder:
            self.save_folder(checkpoint, folder)


def sharding_of(strategy: Any) -> Sharding:
    """The strategy's own sharding, or none.

    Raises:
        ValueError: the strategy shards the model in a way that this package does not support.
    """
    if isinstance(strategy, Sharding):
        return strategy
    if isinstance(strategy, DeepSpeedStrategy):
        raise ValueError(
            "Lightning's DeepSpeed strategy divides gradients twice under accumulation and cannot build the teacher; "
            "set trainer.strategy.class_path to lit_sparse.training.strategies.SparseDeepSpeedStrategy (the same "
            "arguments)"
        )
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
        raise ValueError(
            f"{type(strategy).__name__} does not shard this module; set trainer.strategy.class_path to "
            "lit_sparse.training.strategies.SparseFSDPStrategy"
        )
    return Sharding()
