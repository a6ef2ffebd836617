"""What the module needs from a strategy besides training: where weights live while they are built, read and written."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn


class Sharding:
    """Every rank holds the whole model: a single process, and DDP. Strategies that shard it override this."""

    shards_weights = False
    """Whether no rank holds all weights."""

    born_sharded = False
    """Whether models are sharded while they are built, so that they cannot be copied or cast."""

    @contextmanager
    def building(self) -> Iterator[None]:
        """Inside, base models are loaded."""
        yield

    @contextmanager
    def running(self, model: nn.Module) -> Iterator[None]:
        """Inside, a freshly built model can run a forward pass."""
        yield

    def shard(self, model: nn.Module) -> None:
        """Called once with the student, gates and adapters included, before there is an optimizer."""

    def place_frozen(self, model: nn.Module, device: torch.device) -> None:
        """Makes the teacher ready to run; called before each use."""
        model.to(device)

    def weights_written(self) -> None:
        """Called after something other than the optimizer changed weights (calibration sets cutoffs)."""


def sharding_of(strategy: Any) -> Sharding:
    """The strategy's own sharding, or none.

    Raises:
        ValueError: a strategy that shards the model without this package knowing how.
    """
    if isinstance(strategy, Sharding):
        return strategy
    if isinstance(strategy, DeepSpeedStrategy):
        raise ValueError(
            "Lightning's DeepSpeed strategy divides gradients twice under accumulation and cannot build the teacher; "
            "set trainer.strategy.class_path to lit_sparse.strategies.SparseDeepSpeedStrategy (the same arguments)"
        )
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
        raise ValueError(
            f"{type(strategy).__name__} does not shard this module; set trainer.strategy.class_path to "
            "lit_sparse.strategies.SparseFSDPStrategy"
        )
    return Sharding()
