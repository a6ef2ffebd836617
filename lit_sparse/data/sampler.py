"""A sampler whose order depends only on the seed and the epoch, and whose state is a few integers."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed
from torch.utils.data import DistributedSampler, Sampler


class ResumableSampler(DistributedSampler[int]):
    """Indices of one rank, in an order that depends only on `seed` and the epoch.

    Rank r of W takes the entries r, r + W, r + 2 W, ... of the epoch's permutation, so that the ranks
    together read it from left to right. Indices that do not fill a batch on every rank are left out of that
    epoch, so all ranks have the same length. A pass that is read to its end raises `epoch` by one; `set_epoch`
    (which Lightning calls) sets it.

    The state belongs to the latest pass and is the same on every rank. A state taken after the last index of
    an epoch resumes at the first index of the next one. With another world size, training continues where all
    ranks together had stopped, rounded down to full batches.

    This is a subclass of `DistributedSampler` only because Lightning does not replace those under distributed
    strategies.

    Args:
        size: number of sequences in the dataset.
        batch_size: an epoch is a multiple of this many indices on each rank.
        seed: order of the sequences.
        shuffle: False gives the order of the dataset in every epoch.
        rank, world_size: read from torch.distributed, when first needed, unless given.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        # Not DistributedSampler.__init__, which wants a process group, or a rank, at once.
        Sampler.__init__(self)
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self._rank = rank
        self._world_size = world_size
        self._pass: _Pass | None = None
        self._resume_at: int | None = None

    @property
    def world_size(self) -> int:
        """Number of ranks that share an epoch."""
        if self._world_size is not None:
            return self._world_size
        return torch.distributed.get_world_size() if _is_distributed() else 1

    @property
    def rank(self) -> int:  # type: ignore[override]
        """Number of this rank."""
        if self._rank is not None:
            return self._rank
        return torch.distributed.get_rank() if _is_distributed() else 0

    def __len__(self) -> int:
        """Number of this rank's indices in one epoch.

        Raises:
            ValueError: There is not one batch for every rank.
        """
        group = self.batch_size * self.world_size
        if self.size < group:
            raise ValueError(
                f"{self.size} sequences do not fill one batch of {self.batch_size} on each of"
                f" {self.world_size} ranks ({group} are needed): use more data or a smaller batch_size"
            )
        return self.size // group * self.batch_size

    def __iter__(self) -> Iterator[int]:
        start, self._resume_at = self._resume_at or 0, None
        self._pass = _Pass(self, start)
        return self._pass

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, or of the present one if nothing was read from it yet."""
        self.epoch = epoch

    def indices(self, epoch: int) -> list[int]:
        """This rank's indices of `epoch`, in order."""
        if self.shuffle:
            # Not seed + epoch: epoch 1 of one seed would be epoch 0 of the next.
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            order = torch.randperm(self.size, generator=generator)
        else:
            order = torch.arange(self.size)
        return order[self.rank :: self.world_size][: len(self)].tolist()

    def state_dict(self) -> dict[str, Any]:
        """Size, seed and epoch, and as `consumed` the number of its indices that all ranks together have read."""
        if self._pass is None or self._pass.finished:
            epoch, position = self.epoch, self._resume_at or 0
        else:
            epoch, position = self._pass.epoch, self._pass.position
        return {"size": self.size, "seed": self.seed, "epoch": epoch, "consumed": position * self.world_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next pass start where `state_dict()` was taken.

        Raises:
            ValueError: The state belongs to another dataset or seed, so its position in the epoch has no meaning
                here.
        """
        for name, here in (("size", self.size), ("seed", self.seed)):
            if state_dict[name] != here:
                raise ValueError(
                    f"the checkpoint's training data has {name} {state_dict[name]}, this run's has {here}:"
                    " resume with the first run's data settings, or start a new run from the saved weights"
                )
        self.epoch = state_dict["epoch"]
        self._pass = None
        self._resume_at = state_dict["consumed"] // (self.world_size * self.batch_size) * self.batch_size
        if self._resume_at >= len(self):
            self.epoch, self._resume_at = self.epoch + 1, 0


class _Pass(Iterator[int]):
    """One pass over an epoch. The epoch is fixed when the first index is read."""

    def __init__(self, sampler: ResumableSampler, position: int) -> None:
        self._sampler = sampler
        self._indices: list[int] | None = None
        self._epoch: int | None = sampler.epoch if position > 0 else None
        self.position = position
        self.finished = False

    @property
    def epoch(self) -> int:
        return self._sampler.epoch if self._epoch is None else self._epoch

    def __next__(self) -> int:
        if self._indices is None:
            self._epoch = self.epoch
            self._indices = self._sampler.indices(self._epoch)
        if self.position == len(self._indices):
            if not self.finished:
                self.finished = True
                self._sampler.epoch = self.epoch + 1
            raise StopIteration
        self.position += 1
        return self._indices[self.position - 1]


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
