"""What a run takes from its data: this package's data modules give all of it, others what Lightning asks of them."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from transformers import PreTrainedTokenizerBase

from lit_sparse.data.base import Batch
from lit_sparse.models.base import load_tokenizer

_CALIBRATION = 16
"""Batches that calibration reads of a data module that does not say which."""


class RunData:
    """The text of a run beside what Lightning's loops read.

    Args:
        trainer: of the run. Its data module, or the loaders that `fit` was given.
    """

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self.module: Any = getattr(trainer, "datamodule", None)

    @property
    def sequence_length(self) -> int | None:
        """Tokens of a sequence, where the data module says it."""
        return getattr(self.module, "sequence_length", None)

    def validation(self) -> Iterable[Batch] | None:
        """Batches to choose the model on."""
        return self._of("val_dataloader")

    def test(self) -> Iterable[Batch] | None:
        """Batches to report on: of the test split, or of the validation split where there is no other."""
        test = self._of("test_dataloader")  # not its truth, which is its length: not every loader has one
        return self.validation() if test is None else test

    def calibration(self) -> list[Batch] | None:
        """A few batches of training text."""
        if hasattr(self.module, "calibration_batches"):
            return list(self.module.calibration_batches())
        train = self._of("train_dataloader")
        return None if train is None else list(islice(train, _CALIBRATION))

    def tokenizer(self, model: str) -> PreTrainedTokenizerBase | None:
        """The data's tokenizer, or the model's, if there is one."""
        try:
            return self.module.load_tokenizer() if hasattr(self.module, "load_tokenizer") else load_tokenizer(model)
        except ValueError:
            return None

    def _of(self, name: str) -> Iterable[Batch] | None:
        if self.module is not None:
            is_there = is_overridden(name, self.module, LightningDataModule)
            return getattr(self.module, name)() if is_there else None
        loop = self._trainer.fit_loop
        sources = {"train_dataloader": loop._data_source, "val_dataloader": loop.epoch_loop.val_loop._data_source}
        source = sources.get(name)
        return source.dataloader() if source is not None and source.is_defined() else None
