"""From text to the record of a circuit, and back into a model."""

import copy

import pytest
import torch

from lit_sparse import sparsify
from lit_sparse.circuits.attention_edges import Learning, SentenceSettings, sentence_circuit
from lit_sparse.circuits.attention_edges.sentence import agreement
from lit_sparse.records.sentence_circuit import SentenceCircuits
from tests.circuits.copier import LETTERS

PROMPT = "dhbakcof"  # the answer is h
QUICK = SentenceSettings(learning=Learning(steps=30))


@pytest.fixture(params=["dense", "sparse"])
def model(request, copier):
    model = copy.deepcopy(copier)
    return model if request.param == "dense" else sparsify(model, {"threshold": 0.05})


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[LETTERS.index(letter) for letter in PROMPT]])).logits[0, -1]


def test_a_circuit_keeps_what_it_says_when_it_is_applied(model, letters, tmp_path):
    before = logits_of(model)
    found = sentence_circuit(model, letters, PROMPT, settings=QUICK, name="copier")
    assert torch.equal(logits_of(model), before), "the model is as it was"
    assert found.goal == "distribution" and found.answer == "h" and found.enough and found.circuit.kl <= 0.2
    assert found.faithfulness is None and found.wrong is None and found.agreement is None and not found.controls
    assert 0 < len(found.edges) < found.open <= found.allowed == 2 * 4 * 36
    assert [edge.effect for edge in found.edges] == sorted((edge.effect for edge in found.edges), reverse=True)
    assert found.ablated.kl > 0.2
    SentenceCircuits(circuits=[found]).write(tmp_path / "circuit.json")
    (read,) = SentenceCircuits.load(tmp_path / "circuit.json").circuits
    assert read == found
    with read.apply(model) as edit:
        kept = logits_of(model).log_softmax(-1)
        edit.close(layer=read.edges[0].layer, head=read.edges[0].head)
        assert not torch.allclose(logits_of(model).log_softmax(-1), kept)
    whole = before.log_softmax(-1)
    assert float((whole.exp() * (whole - kept)).sum()) == pytest.approx(found.circuit.kl, abs=1e-4)
    assert float(kept[LETTERS.index("h")].exp()) == pytest.approx(found.circuit.probability, abs=1e-4)
    assert torch.equal(logits_of(model), before)


def test_what_makes_the_difference_to_another_prompt(model, letters, tmp_path):
    other = "dmbakcof"  # its answer is m
    before = logits_of(model)
    found = sentence_circuit(model, letters, PROMPT, corrupted=other, settings=QUICK)
    assert found.off == "corrupted" and found.corrupted == other and not found.mean_over
    assert found.answer == "h" and found.enough and len(found.edges) > 0
    with torch.no_grad():
        corrupted = model(torch.tensor([[LETTERS.index(letter) for letter in other]])).logits[0, -1].log_softmax(-1)
    assert found.ablated.predictions[0][0] != "h", "without edges the model reads the other prompt"
    SentenceCircuits(circuits=[found]).write(tmp_path / "circuit.json")
    (read,) = SentenceCircuits.load(tmp_path / "circuit.json").circuits
    with read.apply(model):
        kept = logits_of(model).log_softmax(-1)
    whole = before.log_softmax(-1)
    assert float((whole.exp() * (whole - kept)).sum()) == pytest.approx(found.circuit.kl, abs=1e-4)
    assert float((whole.exp() * (whole - corrupted)).sum()) > 1


def test_a_difference_with_controls_and_several_searches(model, letters, monkeypatch):
    monkeypatch.setattr("lit_sparse.circuits.attention_edges.sentence.SUBJECTS", ["xx", "b", "h", "c", "d"])
    monkeypatch.setattr("lit_sparse.circuits.attention_edges.sentence.SPACE", "")
    settings = SentenceSettings(learning=Learning(steps=30), searches=2, controls=2)
    bars = []

    class Bar:
        def __init__(self, description, total):
            bars.append([description, total, 0])

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self, steps):
            bars[-1][2] += steps

    found = sentence_circuit(model, letters, PROMPT, "h", "a", settings, bars=Bar)
    assert found.goal == "difference" and found.faithfulness >= 0.9 and found.keep == 0.9 and found.nats is None
    assert found.whole.difference > found.circuit.difference > found.ablated.difference
    assert found.left < 0.9 and 0 <= found.agreement <= 1
    assert len(found.controls) == 2 and {one.answer for one in found.controls} < {"b", "c", "d"}
    assert [bar[0].split(":")[0] for bar in bars] == ["finding the circuit"] * 2 + ["control"] * 2
    assert all(done == total == 30 for _, total, done in bars)


def test_another_model_is_refused(copier, letters):
    found = sentence_circuit(copier, letters, PROMPT, settings=QUICK)
    with pytest.raises(ValueError, match=r"with 2 layers of 4 heads; this model has 2 of 2"):
        from tests.tiny import tiny_llama

        with found.apply(tiny_llama(num_attention_heads=2).eval()):
            pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("d",), "at least two tokens"),
        ((PROMPT, "hh"), "not one token"),
        ((PROMPT, None, "a"), "--answer"),
        ((PROMPT, "h", "h"), "the same token"),
        ((PROMPT, "a", "h"), "does not prefer"),
    ],
)
def test_bad_sentences(arguments, message, copier, letters):
    with pytest.raises(ValueError, match=message):
        sentence_circuit(copier, letters, *arguments)


@pytest.mark.parametrize(("corrupted", "message"), [("dmb", "has 3 tokens, the prompt 8"), (PROMPT, "is the prompt")])
def test_bad_corrupted_prompts(corrupted, message, copier, letters):
    with pytest.raises(ValueError, match=message):
        sentence_circuit(copier, letters, PROMPT, corrupted=corrupted)


@pytest.mark.parametrize(
    "changes",
    [{"keep": 1.0}, {"keep": 0.0}, {"nats": 0.0}, {"off": "corrupted"}, {"searches": 0}, {"controls": -1},
     {"learning": Learning(steps=0)}],
)  # fmt: skip
def test_bad_settings(changes):
    with pytest.raises(ValueError):
        SentenceSettings(**changes)


def test_agreement_is_the_mean_jaccard_index():
    a, b, c = {(0, 0, 1, 0), (1, 0, 1, 0)}, {(0, 0, 1, 0)}, set()
    assert agreement([a]) is None and agreement([a, b]) == 0.5
    assert agreement([a, b, c]) == pytest.approx(0.5 / 3)
