import json

import pytest
import torch

from lit_sparse.data import TextData
from lit_sparse.data import text as text_module
from lit_sparse.data.text import split_of


def make(folder, tokenizer, **settings):
    settings = {"sequence_length": 16, "val_sequences": 2, "test_sequences": 2, "seed": 3} | settings
    sources = settings.pop("sources", [f"{folder}/*.jsonl", f"{folder}/*.txt"])
    return TextData(sources, tokenizer=tokenizer, **settings)


def blocks_of(data):
    return [torch.stack([split.input_ids, split.position_ids]) for split in data.splits]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(blocks_of(left), blocks_of(right), strict=True))


def test_batches(text_folder, tokenizer):
    data = make(text_folder, tokenizer, batch_size=4, eval_batch_size=8, calibration_sequences=3)
    data.prepare_data()
    data.setup("fit")
    for batch in data.train_dataloader():
        assert {name: values.shape for name, values in batch.items()} == {
            "input_ids": (4, 16),
            "position_ids": (4, 16),
            "labels": (4, 16),
        }
        inner = batch["position_ids"][:, 1:] > 0
        assert torch.equal(batch["labels"][:, :-1][inner], batch["input_ids"][:, 1:][inner])
        assert (batch["labels"][:, :-1][~inner] == -100).all()
    assert [len(batch["labels"]) for batch in data.val_dataloader()] == [2]
    assert [len(batch["labels"]) for batch in data.test_dataloader()] == [2]
    (calibration,) = data.calibration_batches()
    assert torch.equal(calibration["input_ids"], data.splits.train.input_ids[:3].long())
    assert (data.task_name, data.sequence_length) == ("text", 16)


def test_the_split_depends_on_the_text_alone(text_folder, tokenizer, monkeypatch):
    data = make(text_folder, tokenizer)
    sources = [f"{text_folder}/*.txt", f"{text_folder}/*.jsonl", f"{text_folder}/note1.txt"]
    assert same(make(text_folder, tokenizer, sources=sources), data)
    assert same(make(text_folder, tokenizer, seed=4), data)
    lines = (text_folder / "many.jsonl").read_text().splitlines()
    (text_folder / "many.jsonl").write_text("\n".join(reversed(lines)))
    assert same(make(text_folder, tokenizer), data)


def test_held_out_text_is_not_trained_on(text_folder, tokenizer):
    rows = [{tuple(row) for row in split.input_ids.tolist()} for split in make(text_folder, tokenizer).splits]
    assert not rows[0] & (rows[1] | rows[2])
    assert not rows[1] & rows[2]


def test_split_shares():
    names = [split_of(i.to_bytes(8, "big")) for i in range(100)]
    assert [names.count(name) for name in ("train", "val", "test")] == [80, 10, 10]


def test_the_second_start_reads_the_cache(text_folder, tokenizer, cache_folder, monkeypatch):
    data = make(text_folder, tokenizer)
    data.setup()
    (path,) = cache_folder.iterdir()
    monkeypatch.setattr(TextData, "_pack", lambda *args: pytest.fail("tokenised again"))
    again = make(text_folder, tokenizer, val_sequences=1)
    assert len(again.splits.val) == 1
    assert torch.equal(again.splits.train.input_ids, data.splits.train.input_ids)
    monkeypatch.undo()
    path.write_bytes(b"broken")
    monkeypatch.setenv("LIT_SPARSE_CACHE", str(cache_folder.parent))
    assert same(make(text_folder, tokenizer), data)


def test_the_cache_is_keyed_by_content(text_folder, tokenizer, cache_folder):
    make(text_folder, tokenizer).setup()
    make(text_folder, tokenizer, sequence_length=8).setup()
    make(text_folder, tokenizer, max_documents=50).setup()
    (text_folder / "note0.txt").write_text("the " * 30)
    make(text_folder, tokenizer).setup()
    tokenizer.add_tokens(["epsilon"])
    make(text_folder, tokenizer).setup()
    assert len(list(cache_folder.iterdir())) == 5
    assert not list(cache_folder.glob("*.tmp"))


def test_a_folder_that_cannot_be_written_is_no_error(text_folder, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIT_SPARSE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="not cached"):
        make(text_folder, tokenizer).setup()


def test_caps(text_folder, tokenizer):
    assert len(make(text_folder, tokenizer, train_sequences=5).splits.train) == 5
    whole, few = make(text_folder, tokenizer), make(text_folder, tokenizer, max_documents=45)
    assert len(few.splits.train) < len(whole.splits.train)
    with pytest.warns(UserWarning, match="of the 500 blocks of data.val_sequences"):
        make(text_folder, tokenizer, val_sequences=500).setup()


def test_a_stream_is_read_until_every_split_is_full(tokenizer, monkeypatch):
    import datasets

    read = []

    def rows():
        for i in range(10**6):
            read.append(i)
            yield {"text": " ".join("abcdefghij"[int(digit)] for digit in f"{i:06d}")}

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows())
    monkeypatch.setattr(text_module, "_DOCUMENTS_PER_CALL", 16)
    data = make(None, tokenizer, sources=["hf:org/name"], train_sequences=20)
    assert [len(split) for split in data.splits] == [20, 2, 2]
    assert len(read) < 200


def test_tokenizer_by_name(text_folder, tokenizer, monkeypatch):
    from lit_sparse.models import base as models

    monkeypatch.setattr(models, "load_tokenizer", lambda name: {"some-model": tokenizer}[name])
    assert same(make(text_folder, "some-model"), make(text_folder, tokenizer))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"sources": []}, "data.sources is empty"),
        ({"sources": ["hf:org/name"]}, "set data.train_sequences"),
        ({"sequence_length": 1}, "sequence_length must be at least 2"),
        ({"val_sequences": 0}, "val_sequences must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_refusals_at_once(text_folder, tokenizer, settings, reason):
    with pytest.raises(ValueError, match=reason):
        make(text_folder, tokenizer, **settings)


def test_refusals_before_training(text_folder, tokenizer):
    with pytest.raises(ValueError, match="no file matches"):
        make(text_folder, tokenizer, sources=["nowhere/*.txt"]).prepare_data()
    with pytest.raises(ValueError, match="has no tokenizer"):
        make(text_folder, None).prepare_data()
    with pytest.raises(ValueError, match=r"split of .* has \d+ tokens in \d+ documents.*block needs 500"):
        make(text_folder, tokenizer, sequence_length=500).setup()
    (text_folder / "empty.jsonl").write_text(json.dumps({"text": ""}))
    with pytest.raises(ValueError, match="has 0 tokens in 0 documents"):
        make(text_folder, tokenizer, sources=[f"{text_folder}/empty.jsonl"]).setup()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        make(text_folder, tokenizer).setup()
