"""Packing of tokenised documents into blocks of one length that keep the boundaries between documents.

Shapes: N blocks, T tokens of a block (`sequence_length`).

The end-of-sequence token follows every document. All documents are concatenated and cut every T tokens; the rest at the
end is dropped. Position ids restart at 0 at each document and at each block. Only they record the boundaries: a token
at position 0 does not continue the text before it. The model has to predict the end-of-sequence token after a document,
and nothing after that token.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Int, Int32, Int64
from torch import Tensor

from lit_sparse.data.base import IGNORE_INDEX, Batch, BatchDataset


class PackedBlocks(BatchDataset):
    """Blocks of packed documents, stored as int32 and returned as int64 batches with labels.

    Args:
        input_ids: the tokens.
        position_ids: position of each token in its document, as `pack_documents` makes them.
    """

    def __init__(self, input_ids: Int32[Tensor, "block time"], position_ids: Int32[Tensor, "block time"]) -> None:
        self.input_ids = input_ids
        self.position_ids = position_ids

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(self, indices: Int64[Tensor, " batch"]) -> Batch:
        input_ids, position_ids = self.input_ids[indices].long(), self.position_ids[indices].long()
        labels = next_token_labels(input_ids, position_ids)
        return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}

    def first(self, count: int | None) -> "PackedBlocks":
        """The first `count` blocks, or all."""
        return PackedBlocks(self.input_ids[:count], self.position_ids[:count])


def pack_documents(
    documents: Iterable[Sequence[int] | np.ndarray], eos_token_id: int, sequence_length: int
) -> PackedBlocks:
    """Pack tokenised documents (see the top of this file). Documents without tokens are left out.

    Raises:
        ValueError: `sequence_length` is below 2. A block needs a token and one to predict from it.
    """
    if sequence_length < 2:
        raise ValueError(f"sequence_length must be at least 2, not {sequence_length}")
    eos = np.array([eos_token_id], dtype=np.int32)
    pieces = [piece for document in documents if len(document) for piece in (np.asarray(document, np.int32), eos)]
    flat = torch.from_numpy(np.concatenate([*pieces, eos[:0]]))
    starts = torch.zeros(len(flat) + 1, dtype=torch.bool)
    starts[0] = True
    if pieces:
        lengths = torch.tensor([len(document) + len(eos) for document in pieces[::2]])
        starts[lengths.cumsum(0)] = True

    used = len(flat) // sequence_length * sequence_length
    input_ids = flat[:used].view(-1, sequence_length)
    starts = starts[:used].view(-1, sequence_length)
    starts[:, 0] = True
    time = torch.arange(sequence_length, dtype=torch.int32)
    latest_start = torch.where(starts, time, 0).cummax(dim=1).values
    return PackedBlocks(input_ids, time - latest_start)


def next_token_labels(
    input_ids: Int[Tensor, "batch time"], position_ids: Int[Tensor, "batch time"]
) -> Int[Tensor, "batch time"]:
    """The next token if it belongs to the same document and block, else `IGNORE_INDEX`."""
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    labels[:, :-1] = torch.where(position_ids[:, 1:] > 0, input_ids[:, 1:], IGNORE_INDEX)
    return labels
