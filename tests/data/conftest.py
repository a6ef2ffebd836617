import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """No test reads or writes the user's cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LIT_SPARSE_CACHE", str(folder))
    return folder / "data"


@pytest.fixture
def tokenizer():
    """Single letters and six words, each one token; everything else is unknown."""
    vocabulary = {"<eos>": 0, "<unk>": 1} | {chr(97 + i): 2 + i for i in range(26)}
    vocabulary |= {word: 28 + i for i, word in enumerate(["alpha", "beta", "gamma", "delta", "the", "of"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


@pytest.fixture
def text_folder(tmp_path):
    """Sixty short documents in one .jsonl file, and three text files."""
    folder = tmp_path / "text"
    folder.mkdir()
    words = ["alpha", "beta", "gamma", "delta"]
    documents = [" ".join(words[(i // 4**k) % 4] for k in range(12)) + f" {chr(97 + i % 26)}" for i in range(60)]
    (folder / "many.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents) + "\n")
    for i in range(3):
        (folder / f"note{i}.txt").write_text("the of " * (5 + i))
    return folder
