"""The circuit of a sentence in the terminal."""

from io import StringIO
from itertools import pairwise

import pytest
from rich.cells import cell_len
from rich.console import Console

from lit_sparse.records.sentence_circuit import KeptEdge, SentenceCircuit, SentenceCircuits
from lit_sparse.report.sentence.table import circuit_view
from lit_sparse.report.sentence.words import comparison, headline, loss, magnitude
from tests.report.sentence_example import HOSTILE, make_circuit, make_two, many_edges


def printed(*circuits: SentenceCircuit, width: int = 80) -> str:
    output = StringIO()
    Console(file=output, width=width).print(circuit_view(SentenceCircuits(circuits=list(circuits))))
    return output.getvalue()


def test_two_models_in_words():
    text = printed(*make_two().circuits)
    lines = [line.rstrip() for line in text.splitlines()]
    assert "9 of 418 open attention edges are enough: f = 0.93 (asked for 0.9)" in lines
    assert "20 of 15,120 open attention edges are enough: f = 0.93 (asked for 0.9)" in lines
    assert '" to" (13) reads' in lines and lines.count('" John" (9) reads') == 2
    assert '  L9 H9     <- " Mary" (1)   weight 0.83    without it f falls by 0.52' in lines
    assert '  L10 H7    <- " Mary" (1)   weight 0.58    without it f rises by 0.14' in lines
    assert "  L1 H5     <- itself        weight 0.33    without it f stays the same" in lines
    assert [line.split()[-1] for line in lines if line.startswith(" circuit only")] == ["0.142", "0.142"]
    assert "Control: an arbitrary answer takes 91, 574 and - edges" in text
    assert "Searches from other seeds have 62 % of their edges in common." in lines
    assert "The sparse model needs 9 attention edges, the dense one 20 (2.22 times as many)." in lines
    assert text.count("When Mary and John") == 1


@pytest.mark.parametrize("width", [80, 50, 120])
@pytest.mark.parametrize("count", [0, 1, 20, 150])
def test_no_line_is_wider_than_the_console(width, count):
    circuit = make_circuit(many_edges(count, len(HOSTILE)), HOSTILE, layers=30, model="a/" + "very-long-name-" * 9)
    text = printed(circuit, circuit.model_copy(update={"sparse": True}), width=width)
    assert max(cell_len(line) for line in text.split("\n")) <= width
    assert text.count("more (circuit.json)") == (2 if count > 30 else 0)
    if width >= 80:
        assert text.count("without it f ") == 2 * min(count, 30)


def test_the_strongest_edges_in_the_order_of_layers():
    text = printed(make_circuit(many_edges(42, 14), layers=30))
    assert "and 12 more (circuit.json)" in text
    lines = [line for line in text.splitlines() if " reads" in line or line.startswith("  L")]
    layers = [int(line.split()[0][1:]) if line.startswith("  L") else -1 for line in lines]
    for before, after in pairwise(layers):
        assert after == -1 or before <= after


def test_words():
    circuit = make_circuit([KeptEdge(0, 0, 1, 0, 0.5, 0.1)])
    assert headline(circuit).startswith("1 of 15,120 open attention edges is enough")
    kl = make_circuit(goal="distribution", nats=0.1)
    assert headline(kl) == "20 of 15,120 open attention edges are not enough: KL 0.14 nats (at most 0.1)"
    assert loss(kl, KeptEdge(0, 0, 1, 0, 0.5, -0.0004)) == "KL falls by <0.001"
    assert [magnitude(value) for value in (0, 0.0001, -0.004, 0.01, 12.345)] == [
        "0",
        "<0.001",
        "0.004",
        "0.01",
        "12.35",
    ]
    assert comparison([circuit]) is None
    assert comparison([circuit, circuit]) == "Both models need 1 attention edge. 1 is in both."
    none = make_circuit([], model="other")
    assert comparison([circuit, none]) == "The other model needs 0 attention edges, the gpt2 one 1."
