"""circuit.json: what it must hold."""

import json

import pytest

from lit_sparse.records.sentence_circuit import KeptEdge, SentenceCircuits
from tests.report.sentence_example import HOSTILE, make_circuit, make_two, many_edges


def test_round_trip(tmp_path):
    file = tmp_path / "circuit.json"
    hostile = make_circuit(many_edges(20, len(HOSTILE)), HOSTILE, layers=30)
    for circuits in (make_two(), SentenceCircuits(circuits=[hostile])):
        circuits.write(file)
        assert SentenceCircuits.load(file) == circuits
    edge = SentenceCircuits.load(file).circuits[0].edges[0]
    assert isinstance(edge, KeptEdge) and edge == hostile.edges[0]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokens", None, r"circuits\.0\.tokens: Input should be a valid array"),
        ("goal", "loss", r"circuits\.0\.goal: Input should be 'difference' or 'distribution'"),
        ("format", 2, r"circuits\.0\.format: Input should be 1"),
        ("faithfulness", float("nan"), r"circuits\.0\.faithfulness: Input should be a finite number"),
        ("edges", [[0, 0, 1, 0, 0.5]], r"circuits\.0\.edges\.0\.5: Field required"),
        ("edges", [[0, 0, 1, 0, 0.5, float("nan")]], r"circuits\.0\.edges\.0\.5: Input should be a finite number"),
        ("edges", [[0, 0, -1, 0, 0.5, 0.1]], r"circuits\.0\.edges\.0\.2: Input should be greater than"),
        (
            "edges",
            [[12, 0, 1, 0, 0.5, 0.1]],
            r"circuits\.0\.edges: .*no edge of 12 layers, 12 heads and 14 tokens: \[12,",
        ),
        ("edges", [[0, 0, 1, 2, 0.5, 0.1]], r"circuits\.0\.edges: .*no edge of"),
        ("edges", [[0, 0, 14, 2, 0.5, 0.1]], r"circuits\.0\.edges: .*no edge of"),
        ("keep", None, r"circuits\.0: .*the goal 'difference' needs keep"),
    ],
)
def test_a_wrong_file_is_refused_by_the_field(tmp_path, field, value, message):
    file = tmp_path / "circuit.json"
    content = make_two().model_dump(mode="json")
    content["circuits"][0][field] = value
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"circuit.json cannot be read by this version: {message}"):
        SentenceCircuits.load(file)


def test_one_circuit_or_two(tmp_path):
    for count in (0, 3):
        (tmp_path / "circuit.json").write_text(
            json.dumps({"circuits": [make_circuit().model_dump(mode="json")] * count})
        )
        with pytest.raises(ValueError, match="circuits: List should have at"):
            SentenceCircuits.load(tmp_path / "circuit.json")
    with pytest.raises(ValueError, match=r"no circuit\.json"):
        SentenceCircuits.load(tmp_path / "other" / "circuit.json")


def test_enough():
    assert make_circuit().enough and not make_circuit(faithfulness=0.899).enough
    distribution = {"goal": "distribution", "wrong": None, "keep": None, "faithfulness": None}
    assert make_circuit(**distribution, nats=0.142).enough and not make_circuit(**distribution, nats=0.1).enough
