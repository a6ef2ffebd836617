"""Base of every data module: the batch, its loading, and the resuming of a run.

Shapes: B batch, T queries (time). A batch is a dictionary of three int64 tensors of shape (B, T):

    input_ids       the tokens
    position_ids    restart at 0 at each document, so packed documents can be told apart
    labels          the token to predict at each position, ALREADY SHIFTED; IGNORE_INDEX (-100) is not scored
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from jaxtyping import Int64
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

from lit_sparse.data.sampler import ResumableSampler

IGNORE_INDEX = -100
"""The label of a position that is not scored: the default of `torch.nn.functional.cross_entropy`."""

Batch = dict[str, Tensor]


class BatchDataset(Dataset[Batch]):
    """A map-style dataset that can gather a whole batch in one indexing operation.

    A subclass writes `batch` and `__len__`. Loaders need `collate` as their collate function.
    """

    def batch(self, indices: Int64[Tensor, " batch"]) -> Batch:
        """The batch of the sequences at `indices`."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Batch:
        return {name: values[0] for name, values in self.batch(torch.tensor([index])).items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self.batch(torch.tensor(indices))


def collate(batch: Batch | list[Batch]) -> Batch:
    """Return a batch of `BatchDataset.__getitems__` as it is; make a batch of single sequences."""
    return batch if isinstance(batch, dict) else default_collate(batch)


class Splits(NamedTuple):
    """The three datasets of a run; no sequence of `val` or `test` is in `train`."""

    train: BatchDataset
    val: BatchDataset
    test: BatchDataset


class _Replicas(TypedDict, total=False):
    rank: int
    world_size: int


class ResumableLoader(StatefulDataLoader):
    """torchdata's loader with a clear error for a state that was written with another number of workers.

    torchdata itself fails there with an assertion about the private keys of its state.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the batch after the one at which `state_dict()` was taken.

        Raises:
            ValueError: The state was written with another number of workers.
        """
        if state_dict:
            snapshot = state_dict.get("_snapshot")
            written = 0 if snapshot is None else len(snapshot["_worker_snapshots"])
            if written != self.num_workers:
                raise ValueError(
                    f"this checkpoint was written with num_workers={written} and can only be resumed with the"
                    f" same number, not {self.num_workers}: set data.num_workers to {written}"
                )
        super().load_state_dict(state_dict)


class BatchDataModule(LightningDataModule):
    """Loaders over three `BatchDataset` objects: shuffled and resumable for training, in order for evaluation.

    A subclass sets `task_name` and `sequence_length` and writes `build`. Every rank must build the same
    datasets.

    Args:
        batch_size: sequences in a training batch of one device.
        eval_batch_size: sequences in a validation, test or calibration batch of one device.
        calibration_sequences: training sequences that `calibration_batches` returns.
        seed: order of the training sequences.
        num_workers: processes that load batches; 0 loads them in the main process.

    Raises:
        ValueError: A size is not positive.
    """

    task_name: str
    sequence_length: int

    def __init__(
        self,
        *,
        batch_size: int,
        eval_batch_size: int,
        calibration_sequences: int,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        require_positive(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            calibration_sequences=calibration_sequences,
        )
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, not {num_workers}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.calibration_sequences = calibration_sequences
        self.seed = seed
        self.num_workers = num_workers
        self._splits: Splits | None = None

    def build(self) -> Splits:
        """Make the datasets, once in each process. Raises ValueError for mistakes that the user can correct."""
        raise NotImplementedError

    @property
    def splits(self) -> Splits:
        """The datasets, built at the first access."""
        if self._splits is None:
            self._splits = self.build()
        return self._splits

    def setup(self, stage: str | None = None) -> None:
        """Build the datasets, once. The loaders have samplers that split over ranks and resume, so Lightning's own is
        turned off, whatever the trainer's `use_distributed_sampler` says."""
        _ = self.splits
        if self.trainer is not None:
            self.trainer._accelerator_connector.use_distributed_sampler = False

    def train_dataloader(self) -> ResumableLoader:
        """Loader of full training batches, shuffled anew in each epoch. Its `state_dict` resumes at the next batch."""
        dataset = self.splits.train
        sampler = ResumableSampler(len(dataset), batch_size=self.batch_size, seed=self.seed, **self._replicas())
        len(sampler)  # raises now if there is not one batch for every rank
        with warnings.catch_warnings():
            # torchdata 0.11 calls a function that torch 2.13 deprecates, to no effect.
            warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
            return ResumableLoader(
                dataset,
                batch_size=self.batch_size,
                sampler=sampler,
                drop_last=True,
                num_workers=self.num_workers,
                collate_fn=collate,
                pin_memory=torch.cuda.is_available(),
            )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Validation sequences in order. Each of n ranks has every n-th sequence; a remainder below n is left out."""
        return self._eval_dataloader(self.splits.val)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Test sequences in order. Each of n ranks has every n-th sequence; a remainder below n is left out."""
        return self._eval_dataloader(self.splits.test)

    def calibration_batches(self) -> list[Batch]:
        """The first `calibration_sequences` TRAINING sequences, on which thresholds are set; equal on every rank."""
        dataset = self.splits.train
        indices = torch.arange(min(self.calibration_sequences, len(dataset)))
        return [dataset.batch(chunk) for chunk in indices.split(self.eval_batch_size)]

    def _eval_dataloader(self, dataset: BatchDataset) -> DataLoader[Batch]:
        sampler = ResumableSampler(len(dataset), shuffle=False, **self._replicas())
        return DataLoader(
            dataset,
            batch_size=self.eval_batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
        )

    def _replicas(self) -> _Replicas:
        """Rank and number of data-parallel replicas as the strategy counts them (TP ranks share data)."""
        kwargs = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        if kwargs is None:
            return {}
        return {"rank": kwargs["rank"], "world_size": kwargs["num_replicas"]}


def require_positive(**sizes: int | None) -> None:
    """Raise ValueError, naming the setting, for a size below 1. None means that the size was not set."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
