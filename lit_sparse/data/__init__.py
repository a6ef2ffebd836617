"""Data of a run: LightningDataModules for text and for tasks, with one kind of batch (`data.base`)."""

from lit_sparse.data.addition import AdditionData, AdditionPairs, AdditionTokenizer
from lit_sparse.data.base import (
    IGNORE_INDEX,
    Batch,
    BatchDataModule,
    BatchDataset,
    ResumableLoader,
    Splits,
    collate,
)
from lit_sparse.data.packing import PackedBlocks, next_token_labels, pack_documents
from lit_sparse.data.prose import python_prose
from lit_sparse.data.sampler import ResumableSampler
from lit_sparse.data.text import TextData

__all__ = [
    "IGNORE_INDEX",
    "AdditionData",
    "AdditionPairs",
    "AdditionTokenizer",
    "Batch",
    "BatchDataModule",
    "BatchDataset",
    "PackedBlocks",
    "ResumableLoader",
    "ResumableSampler",
    "Splits",
    "TextData",
    "collate",
    "next_token_labels",
    "pack_documents",
    "python_prose",
]
