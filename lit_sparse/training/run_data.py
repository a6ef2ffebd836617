"""Data of a run. This package's data modules provide all of it, others what Lightning requires."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from transformers import PreTrainedTokenizerBase

from lit_sparse.data.base import Batch
from lit_sparse.models.base import load_tokenizer

_CALIBRATION = 16
"""Number of batches that calibration reads from a data module without `calibration_batches`."""


class RunData:
    """The text of a run that is read outside of Lightning's loops.

    Args:
        trainer: the run's trainer, with a data module or with the loaders that `fit` was given.
    """

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self.module: Any = getattr(trainer, "datamodule", None)

    @property
    def sequence_length(self) -> int | None:
        """Number of tokens of a sequence, if the data module gives it."""
        return getattr(self.module, "sequence_length", None)

    def validation(self) -> Iterable[Batch] | None:
        """Batches on which the model is selected."""
        return self._of("val_dataloader")

    def test(self) -> Iterable[Batch] | None:
        """Batches to report on: those of the test split, or of the validation split if there is no test split."""
        test = self._of("test_dataloader")  # its truth value would be its length, which not every loader has
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
