import pytest
import torch

from lit_sparse.data import AdditionData, AdditionPairs, AdditionTokenizer
from lit_sparse.objective.exact_match import exact_match


def test_a_sequence():
    tokenizer = AdditionTokenizer()
    item = AdditionPairs(torch.tensor([1234, 9999]), digits=2).batch(torch.tensor([0, 1]))
    assert [tokenizer.decode(row) for row in item["input_ids"]] == ["12+34=046", "99+99=198"]
    assert item["position_ids"].tolist() == [list(range(9))] * 2
    assert item["labels"].tolist() == [[-100] * 5 + [0, 4, 6, -100], [-100] * 5 + [1, 9, 8, -100]]
    assert all(values.dtype == torch.int64 for values in item.values())


def test_tokenizer():
    tokenizer = AdditionTokenizer()
    assert tokenizer.vocab_size == 12 == len(tokenizer.tokens)
    assert tokenizer.decode(tokenizer.encode("07+15=022")) == "07+15=022"
    with pytest.raises(ValueError, match=r"no token for \['-'\]"):
        tokenizer.encode("1-1")


def test_every_pair_once():
    data = AdditionData()
    data.setup()
    train, val, test = data.splits
    assert (len(train), len(val), len(test)) == (9000, 500, 500)
    assert torch.equal(torch.cat([part.pairs for part in data.splits]).sort().values, torch.arange(10_000))
    assert torch.equal(AdditionData().splits.val.pairs, val.pairs)
    assert not torch.equal(AdditionData(seed=1).splits.val.pairs, val.pairs)


@pytest.mark.parametrize("digits", [1, 3, 5, 9])
def test_other_widths(digits):
    data = AdditionData(digits=digits, max_pairs=2_000, batch_size=16, eval_batch_size=64)
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == (16, data.sequence_length) == (16, 3 * digits + 3)
    for row in batch["input_ids"]:
        left, right = data.tokenizer.decode(row).split("=")
        assert sum(map(int, left.split("+"))) == int(right)
        assert len(right) == digits + 1
    pairs = torch.cat([part.pairs for part in data.splits])
    assert len(pairs.unique()) == len(pairs) <= 2_000
    assert pairs.min() >= 0


def test_loaders():
    data = AdditionData()
    assert len(data.train_dataloader()) == 35
    assert sum(len(batch["labels"]) for batch in data.val_dataloader()) == 500
    assert sum(len(batch["labels"]) for batch in data.test_dataloader()) == 500
    (calibration,) = data.calibration_batches()
    assert calibration["input_ids"].shape == (256, 9)
    assert data.task_name == "addition"


def test_exact_match():
    labels = torch.tensor([[-100, 1, 2, -100]] * 3)
    predictions = torch.tensor([[7, 1, 2, 8], [7, 1, 3, 8], [0, 0, 0, 0]])
    assert exact_match(predictions, labels).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"digits": 0}, "1 to 9"),
        ({"digits": 10}, "1 to 9"),
        ({"held_out": 0.0}, "between 0 and 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_refusals(settings, reason):
    with pytest.raises(ValueError, match=reason):
        AdditionData(**settings)


def test_an_empty_split():
    with pytest.raises(ValueError, match="leaves training, validation or test empty"):
        AdditionData(digits=1, held_out=0.001).setup()
    with pytest.raises(ValueError, match="do not fill one batch of 256"):
        AdditionData(digits=1).train_dataloader()
