import pytest
import torch

from lit_sparse.data import IGNORE_INDEX, PackedBlocks, next_token_labels, pack_documents

EOS = 99


def slow_pack(documents, eos, length):
    """Token by token, with the number of each token's document."""
    stream = [(token, number) for number, doc in enumerate(documents) if len(doc) for token in [*doc, eos]]
    blocks = []
    for start in range(0, len(stream) - length + 1, length):
        block = stream[start : start + length]
        ids, positions, labels = [], [], []
        for t, (token, document) in enumerate(block):
            ids.append(token)
            positions.append(positions[-1] + 1 if t > 0 and block[t - 1][1] == document else 0)
            follows = t + 1 < length and block[t + 1][1] == document
            labels.append(block[t + 1][0] if follows else IGNORE_INDEX)
        blocks.append((ids, positions, labels))
    return blocks


@pytest.mark.parametrize("length", [2, 3, 7, 16])
def test_equals_the_slow_packing(length):
    generator = torch.Generator().manual_seed(length)
    lengths = torch.randint(0, 12, (40,), generator=generator)
    # the end-of-sequence id also turns up inside documents, where it ends nothing
    documents = [torch.randint(95, 100, (int(n),), generator=generator).tolist() for n in lengths]
    packed = pack_documents(documents, EOS, length)
    expected = slow_pack(documents, EOS, length)
    assert len(packed) == len(expected) > 3
    batch = packed.batch(torch.arange(len(packed)))
    for name, values in zip(("input_ids", "position_ids", "labels"), zip(*expected, strict=True), strict=True):
        assert batch[name].dtype == torch.int64
        assert batch[name].tolist() == list(values)


def test_the_end_of_a_document_is_scored_and_what_follows_is_not():
    packed = pack_documents([[1, 2], [3, 4, 5]], EOS, 7)
    item = packed[0]
    assert item["input_ids"].tolist() == [1, 2, EOS, 3, 4, 5, EOS]
    assert item["position_ids"].tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert item["labels"].tolist() == [2, EOS, -100, 4, 5, EOS, -100]


def test_nothing_to_pack():
    assert len(pack_documents([], EOS, 4)) == 0
    assert len(pack_documents([[], [1]], EOS, 4)) == 0


def test_first():
    packed = pack_documents([list(range(20))], EOS, 4)
    assert isinstance(packed.first(2), PackedBlocks)
    assert len(packed.first(2)) == 2
    assert len(packed.first(None)) == 5
    assert len(packed.first(50)) == 5


def test_labels_keep_the_type_of_the_tokens():
    ids = torch.tensor([[5, 6, 7]], dtype=torch.int32)
    labels = next_token_labels(ids, torch.tensor([[0, 1, 0]], dtype=torch.int32))
    assert labels.dtype == torch.int32
    assert labels.tolist() == [[6, -100, -100]]


def test_too_short():
    with pytest.raises(ValueError, match="at least 2, not 1"):
        pack_documents([[1, 2, 3]], EOS, 1)
