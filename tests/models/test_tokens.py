"""A token's text: bytes that are no whole character can be told apart, in every table, file and page."""

import json
import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.measure import _example
from lit_sparse.circuits.tasks import Pair
from lit_sparse.commands.options import graph, trace
from lit_sparse.data import AdditionData
from lit_sparse.models.digest import digest_of
from lit_sparse.models.tokens import token_text
from lit_sparse.transcoders import Transcoder, TranscoderConfig, save_transcoder

PROMPT = "你好🙂<b>"


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2 has: 256 bytes, and merges that give 你 whole and two bytes of 好."""
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary = {piece: index for index, piece in enumerate(sorted(byte.alphabet()))}
    merges = []

    def merge(left: str, right: str) -> None:
        merges.append((left, right))
        vocabulary[left + right] = len(vocabulary)

    ni, hao = (byte.pre_tokenize_str(char)[0][0] for char in "你好")
    merge(ni[0], ni[1])
    merge(ni[:2], ni[2])
    merge(hao[0], hao[1])
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer, backend.decoder = byte, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def texts(tokenizer, prompt):
    return [token_text(tokenizer, token) for token in tokenizer(prompt)["input_ids"]]


def test_bytes_of_byte_level_tokenizers(byte_level):
    found = texts(byte_level, PROMPT)
    assert found == ["你", r"\xe5\xa5", r"\xbd", r"\xf0", r"\x9f", r"\x99", r"\x82", "<", "b", ">"]
    assert texts(byte_level, " a\n") == [" ", "a", "\n"]
    assert token_text(byte_level, byte_level.eos_token_id) == "<eos>"
    every = [token_text(byte_level, token) for token in range(256)]
    assert len(set(every)) == 256 and not any("\N{REPLACEMENT CHARACTER}" in text for text in every)


def test_bytes_of_sentencepiece_tokenizers():
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"<unk>": 256, "▁a": 257}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert texts(tokenizer, "好") == [r"\xe5", r"\xa5", r"\xbd"]
    assert token_text(tokenizer, 257).strip() == "a"


def test_character_tokenizers():
    tokenizer = AdditionData(digits=1).tokenizer
    assert [token_text(tokenizer, token) for token in tokenizer.encode("1+2=")] == list("1+2=")


@pytest.fixture
def model(make_model):
    return make_model("llama", vocab_size=260)


def test_commands_show_the_bytes(byte_level, model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    byte_level.save_pretrained(tmp_path / "model")
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path / "model"), type(byte_level))
    transcoder = Transcoder(TranscoderConfig(features=12, k=4), 2, 32)
    transcoders = tmp_path / "transcoder"
    save_transcoder(transcoder, transcoders, model_name="m", model_digest=digest_of(model), measured={})
    options = ["--model", str(tmp_path / "model"), "--prompt", PROMPT]
    expected = texts(byte_level, PROMPT)
    trace.COMMAND.call([*options, "--out", str(tmp_path / "trace")])
    assert json.loads((tmp_path / "trace/trace.json").read_text())["tokens"] == expected
    graph.COMMAND.call([*options, "--transcoders", str(transcoders), "--out", str(tmp_path / "graph")])
    assert json.loads((tmp_path / "graph/graph.json").read_text())["metadata"]["prompt_tokens"] == expected
    for page in ("trace/trace.html", "graph/graph.html"):
        html = (tmp_path / page).read_text()
        assert (
            re.search(r"\\{1,2}xe5\\{1,2}xa5", html) and "\N{REPLACEMENT CHARACTER}" not in html and PROMPT not in html
        ), page


def test_circuits_show_the_bytes(byte_level, model):
    ids = tuple(byte_level(PROMPT)["input_ids"])
    with Stack(model) as stack:
        example = _example(stack, byte_level, Pair(ids, ids, (1,), (2,), "t"), None)
    assert example.tokens == texts(byte_level, PROMPT)
