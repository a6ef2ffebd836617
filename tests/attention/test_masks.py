"""Masks as intervals: the same edges as transformers' boolean masks."""

import pytest
import torch
from transformers import masking_utils
from transformers.masking_utils import sdpa_mask

from lit_sparse.attention import masks
from lit_sparse.attention.masks import EdgeMask, allowed_edges, mask_for_transformers

PACKED = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0, 1, 1]])
LEFT = torch.tensor([[True] * 9, [False] * 4 + [True] * 5])
RIGHT = LEFT.flip(1)
EMPTY = torch.tensor([[True] * 9, [False] * 9])
MIDDLE = torch.tensor([[True] * 9, [True, True, False, False, True, True, False, True, True]])
FUNCTIONS = {
    "causal": masking_utils.causal_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function(3),
    "chunked": masking_utils.chunked_causal_mask_function(4, torch.zeros(2, dtype=torch.int64)),
    "both ways": masking_utils.bidirectional_mask_function,
    "packed": masking_utils.and_masks(
        masking_utils.causal_mask_function, masking_utils.packed_sequence_mask_function(PACKED)
    ),
}


def boolean(**keys) -> torch.Tensor:
    return sdpa_mask(**keys, allow_is_causal_skip=False)


@pytest.fixture(params=["at once", "row by row"])
def chunks(request, monkeypatch):
    if request.param == "row by row":
        monkeypatch.setattr(masks, "_CHUNK", 1)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("padding", [None, LEFT, RIGHT, EMPTY], ids=["whole", "left", "right", "empty"])
@pytest.mark.parametrize("rows", [9, 4, 1])
def test_intervals_are_the_boolean_mask(chunks, function, padding, rows):
    keys = {"batch_size": 2, "q_length": rows, "kv_length": 9, "q_offset": 9 - rows}
    keys |= {"mask_function": FUNCTIONS[function], "attention_mask": padding}
    expected = boolean(**keys)
    travelling = mask_for_transformers(**keys)
    mask = allowed_edges(travelling, rows, 9, torch.device("cpu"))
    assert travelling.dtype is torch.int32 and mask.holes is None, "these are all contiguous runs"
    assert torch.equal(mask.dense().expand_as(expected), expected)
    assert torch.equal(mask.allowed().expand(2, -1), expected.sum(-1)[:, 0])
    assert torch.equal(mask.block(slice(0, rows), slice(2, 7)), mask.dense()[..., 2:7])
    assert torch.equal(mask.last(1).dense(), mask.dense()[:, :, -1:])


def test_what_is_no_run_of_keys_keeps_its_boolean_mask(chunks):
    keys = {"batch_size": 2, "q_length": 9, "kv_length": 9, "attention_mask": MIDDLE}
    expected, travelling = boolean(**keys), mask_for_transformers(**keys)
    assert travelling.dtype is torch.bool
    mask = allowed_edges(travelling, 9, 9, torch.device("cpu"))
    assert mask.holes is not None and torch.equal(mask.dense(), expected)
    assert torch.equal(mask.last(4).dense(), expected[:, :, 5:])
    assert torch.equal(mask.allowed(), expected.sum(-1)[:, 0])


def test_keys_that_a_static_cache_has_not_filled_are_cut_off():
    travelling = mask_for_transformers(batch_size=1, q_length=2, kv_length=12, q_offset=torch.tensor(5))
    assert allowed_edges(travelling, 2, 12, torch.device("cpu")).stop.tolist() == [[6, 7]]
    assert allowed_edges(travelling, 2, 6, torch.device("cpu")).stop.tolist() == [[6, 6]]


def test_a_plain_causal_mask_is_never_built(monkeypatch):
    monkeypatch.setattr(masks, "boolean_mask", None)
    mask = mask_for_transformers(batch_size=4, q_length=1 << 17, kv_length=1 << 17)
    assert mask.shape == (1, 1, 1 << 17, 2)


@pytest.mark.parametrize("function", ["causal", "window"])
def test_documents_are_kept_apart(function):
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2, 3], [3, 4, 5, 6, 7, 8, 9, 0, 1]])
    mask = allowed_edges(
        mask_for_transformers(batch_size=2, q_length=9, kv_length=9, mask_function=FUNCTIONS[function]), 9, 9, "cpu"
    )
    expected = mask.dense() & (PACKED[:, None, :, None] == PACKED[:, None, None, :])
    assert torch.equal(mask.within_documents(positions).dense(), expected)
    both_ways = EdgeMask.from_dense(torch.ones(1, 1, 9, 9, dtype=torch.bool)).within_documents(positions)
    assert torch.equal(both_ways.dense(), PACKED[:, None, :, None] == PACKED[:, None, None, :])


def test_without_a_device_there_are_no_values():
    keys = {"batch_size": 2, "q_length": 9, "kv_length": 9, "device": "meta"}
    for padding in (None, LEFT.to("meta")):
        mask = mask_for_transformers(**keys, attention_mask=padding)
        assert mask.device.type == "meta"
        assert allowed_edges(mask, 9, 9, torch.device("meta")).start.device.type == "meta"
