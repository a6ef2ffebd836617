import pytest
import torch
from torch.utils.data import TensorDataset

from lit_sparse.data import ResumableLoader, ResumableSampler

SIZE, BATCH = 23, 4  # 5 batches an epoch, 3 sequences left out


def make_loader(num_workers=0, seed=1, size=SIZE):
    sampler = ResumableSampler(size, batch_size=BATCH, seed=seed)
    dataset = TensorDataset(torch.arange(size))
    return ResumableLoader(dataset, batch_size=BATCH, sampler=sampler, drop_last=True, num_workers=num_workers)


def read(loader, count):
    """The next `count` batches, epoch after epoch, the way a training loop reads them."""
    batches = []
    while len(batches) < count:
        for (batch,) in loader:
            batches.append(batch.tolist())
            if len(batches) == count:
                return batches, loader.state_dict()
    raise AssertionError


def test_order_is_a_function_of_seed_and_epoch():
    sampler = ResumableSampler(50, seed=3)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    again = ResumableSampler(50, seed=3)
    again.set_epoch(1)
    assert list(again) == second
    assert list(ResumableSampler(50, seed=4)) not in (first, second)


def test_without_shuffling():
    sampler = ResumableSampler(5, shuffle=False)
    assert list(sampler) == list(sampler) == [0, 1, 2, 3, 4]


def test_ranks_share_an_epoch():
    ranks = [ResumableSampler(SIZE, batch_size=2, seed=5, rank=rank, world_size=3) for rank in range(3)]
    parts = [list(sampler) for sampler in ranks]
    assert [len(part) for part in parts] == [6, 6, 6] == [len(sampler) for sampler in ranks]
    whole = ResumableSampler(SIZE, seed=5).indices(0)
    assert [index for together in zip(*parts, strict=True) for index in together] == whole[:18]


def test_reads_the_process_group_when_needed(monkeypatch):
    sampler = ResumableSampler(10)
    assert len(sampler) == 10
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert len(sampler) == 5
    assert list(sampler) == ResumableSampler(10, rank=0, world_size=1).indices(0)[1::2]


def test_an_abandoned_pass_starts_again():
    sampler = ResumableSampler(10)
    first = list(sampler.indices(0))
    next(iter(sampler))
    assert list(sampler) == first


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 5, 8, 10])
def test_resumes_at_the_next_batch(num_workers, stop):
    expected, _ = read(make_loader(), 14)
    before, state = read(make_loader(num_workers), stop)
    loader = make_loader(num_workers)
    loader.load_state_dict(state)
    after, _ = read(loader, 14 - stop)
    assert before + after == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumes_after_a_finished_epoch(num_workers):
    expected, _ = read(make_loader(), 12)
    loader = make_loader(num_workers)
    assert len(list(loader)) == 5
    resumed = make_loader(num_workers)
    resumed.load_state_dict(loader.state_dict())
    assert read(resumed, 7)[0] == expected[5:]


def test_resumes_twice_from_a_state_taken_before_any_batch():
    expected, _ = read(make_loader(), 6)
    loader = make_loader()
    loader.load_state_dict(make_loader().state_dict())
    _, state = read(loader, 2)
    again = make_loader()
    again.load_state_dict(state)
    assert read(again, 4)[0] == expected[2:]


def test_resumes_with_another_number_of_ranks():
    # two ranks have read 8 of 24 sequences together; four ranks go on with the other 16
    pair = [ResumableSampler(24, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for sampler in pair:
        passing = iter(sampler)
        for _ in range(4):
            next(passing)
    assert pair[0].state_dict() == pair[1].state_dict()
    four = [ResumableSampler(24, batch_size=2, rank=rank, world_size=4) for rank in range(4)]
    for sampler in four:
        sampler.load_state_dict(pair[0].state_dict())
    rest = sorted(index for sampler in four for index in sampler)
    assert rest == sorted(ResumableSampler(24).indices(0)[8:])


def test_refusals():
    with pytest.raises(ValueError, match="3 sequences do not fill one batch of 2 on each of 2 ranks"):
        len(ResumableSampler(3, batch_size=2, world_size=2, rank=0))
    _, state = read(make_loader(), 2)
    for other, reason in ((make_loader(seed=2), "seed 1"), (make_loader(size=24), "size 23")):
        other.load_state_dict(state)
        with pytest.raises(ValueError, match=reason):
            next(iter(other))
    with pytest.raises(ValueError, match="num_workers to 0"):
        make_loader(num_workers=2).load_state_dict(state)
