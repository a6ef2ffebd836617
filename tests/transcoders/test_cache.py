"""The cache of activations: exact enough, resumable, and of one model and text."""

import pytest
import torch

from lit_sparse.data import AdditionData
from lit_sparse.models.compared import load_any
from lit_sparse.transcoders import ActivationCache, CachedActivations
from lit_sparse.transcoders.activations import MLPs
from lit_sparse.transcoders.cache import dequantised, quantised


@pytest.fixture
def cached(tmp_path, llama_folder):
    """cached(**settings) -> activations of the tiny llama on 1-digit addition: 80 sums of 6 tokens in 6 shards."""

    def make(folder="cache", **settings):
        data = AdditionData(digits=1, held_out=0.2, **settings.pop("data", {}))
        defaults = {"model": str(llama_folder), "shard_tokens": 72, "batch_tokens": 24}
        return CachedActivations(data, str(tmp_path / folder), **{**defaults, **settings})

    return make


def test_quantisation_is_off_by_half_a_step_at_most():
    rows = torch.randn(3, 7, 32) * torch.logspace(-3, 3, 7)[:, None]
    rows[0, 0] = 0
    whole, scale = quantised(rows)
    assert whole.dtype == torch.int8
    error = (dequantised(whole, scale) - rows).abs().amax(-1)
    assert (error <= 0.5001 * scale).all()


@pytest.mark.parametrize("dtype, tolerance", [("int8", 1 / 254), ("bfloat16", 2**-8)])
def test_shards_hold_what_the_model_computes(cached, llama_folder, dtype, tolerance):
    data = cached(dtype=dtype)
    data.prepare_data()
    shard = data.cache.read(2)
    batch = data.data.splits.train.batch(torch.arange(24, 36))
    assert torch.equal(shard["input_ids"], batch["input_ids"].flatten())
    expected = MLPs(load_any(str(llama_folder), dtype=torch.float32)).capture(batch)
    for name in ("inputs", "outputs"):
        rows = getattr(expected, name).flatten(1, 2)
        error = (shard[f"mlp_{name}"] - rows).abs().amax(-1) / rows.abs().amax(-1)
        assert error.max() <= tolerance * 1.01


def test_filling_goes_on_where_it_stopped(cached, monkeypatch):
    data = cached()
    data.prepare_data()
    files = sorted(data.cache.folder.glob("*.safetensors"))
    assert len(files) == 6 and not list(data.cache.folder.glob(".*"))
    content, times = files[3].read_bytes(), [file.stat().st_mtime_ns for file in files]
    files[3].unlink()
    (data.cache.folder / ".shard_00003.safetensors.1.tmp").write_bytes(b"half")  # of a process that was killed
    cached().prepare_data()
    assert files[3].read_bytes() == content
    assert [file.stat().st_mtime_ns == time for file, time in zip(files, times, strict=True)] == [True] * 3 + [
        False, True, True,
    ]  # fmt: skip
    monkeypatch.setattr("lit_sparse.transcoders.cache.load_any", None)  # a full cache needs no model
    cached().prepare_data()


def test_another_models_or_texts_cache_is_refused(cached, tmp_path, make_model, character_tokenizer):
    cached().prepare_data()
    other = tmp_path / "other"
    make_model("llama", vocab_size=len(character_tokenizer)).save_pretrained(other)
    character_tokenizer.save_pretrained(other)
    for changes, words in (
        ({"model": str(other)}, "another model"),
        ({"data": {"seed": 1}}, "another text"),
        ({"dtype": "bfloat16"}, "another dtype"),
        ({"shard_tokens": 144}, "another sequences_per_shard"),
    ):
        with pytest.raises(ValueError, match=words):
            cached(**changes).prepare_data()


def batches_of(loader):
    return [batch["mlp_inputs"] for batch in loader]


def test_every_token_once_an_epoch_in_a_new_order_and_resumable(cached):
    data = cached()
    data.prepare_data()
    data.setup()
    loader = data.train_dataloader()
    assert len(loader) == 18
    first, second = batches_of(loader), batches_of(loader)
    assert first[0].shape == (2, 24, 16) and len(first) == 18
    everything = torch.cat([data.cache.read(index)["mlp_inputs"] for index in range(6)], dim=1)
    for epoch in (first, second):
        assert torch.equal(torch.cat(epoch, dim=1).sum((0, 2)).sort().values, everything.sum((0, 2)).sort().values)
    assert not torch.equal(first[0], second[0])

    started = data.train_dataloader()
    iterator = iter(started)
    for _ in range(7):
        next(iterator)
    resumed = data.train_dataloader()
    resumed.load_state_dict(started.state_dict())
    rest = batches_of(resumed)
    assert torch.equal(torch.stack(rest), torch.stack(first[7:]))
    assert torch.equal(batches_of(resumed)[0], second[0])


def test_settings_that_cannot_work(cached, tmp_path):
    with pytest.raises(ValueError, match="must hold a batch of 100 tokens"):
        cached(batch_tokens=100)
    with pytest.raises(ValueError, match="do not fill one shard"):
        cached(tokens=12).prepare_data()
    with pytest.raises(ValueError, match="int8, bfloat16"):
        ActivationCache(tmp_path, "float16")
    with pytest.raises(ValueError, match="no model"):
        cached(model=None).prepare_data()
    data = cached()
    data.prepare_data()
    (data.cache.folder / "shard_00001.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="remove it to have it made again"):
        data.cache.read(1)
