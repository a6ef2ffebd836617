"""The circuit of a sentence as a picture."""

import warnings
from io import BytesIO

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from lit_sparse.records.sentence_circuit import KeptEdge, SentenceCircuits
from lit_sparse.report.sentence.layout import lay_out
from lit_sparse.report.sentence.plot import circuit_figure
from lit_sparse.report.shared import style
from tests.report.sentence_example import EDGES, HOSTILE, make_circuit, make_two, many_edges


def drawn(figure: Figure) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Glyph")
        pixels = matplotlib.image.imread(BytesIO(style.png(figure, dpi=40)))
    return min(pixels.shape[:2]) > 100 and float(np.ptp(pixels[..., :3])) > 0.5


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 20, 150])
def test_every_edge_is_a_line_and_few_have_names(count, models):
    circuit = make_circuit(many_edges(count, len(HOSTILE)), HOSTILE, layers=30, answer=HOSTILE[2])
    figure = circuit_figure(SentenceCircuits(circuits=[circuit] * models))
    assert drawn(figure) and len(figure.axes) == models
    for axes in figure.axes:
        lines = [patch for patch in axes.patches if not patch.get_fill()]
        ends = {tuple(np.round(patch.get_path().vertices[[0, 2]].ravel(), 6)) for patch in lines}
        rows = {layer: row for row, layer in enumerate(sorted({edge.layer for edge in circuit.edges}))}
        assert len(lines) == count
        assert ends == {(e.key, rows[e.layer], e.query, rows[e.layer] + 1) for e in circuit.edges}
        names = [text.get_text() for text in axes.texts if text.get_bbox_patch() is not None]
        assert sorted(names) == (sorted(f"{e.layer}.{e.head}" for e in circuit.edges) if count <= 40 else [])
        assert [tick.get_text() for tick in axes.get_yticklabels()] == [str(layer) for layer in rows]


def test_two_models_side_by_side():
    assert drawn(circuit_figure(make_two()))


@pytest.mark.parametrize("size", [1, 60])
def test_short_and_long_sentences(size):
    tokens = ["日本" * 40] * size
    assert drawn(circuit_figure(SentenceCircuits(circuits=[make_circuit([KeptEdge(3, 0, 0, 0, 1, 1)], tokens)])))


def test_layout():
    layout = lay_out(make_circuit())
    assert layout.layers == list(range(12)) and layout.labelled
    assert [line.edge.effect for line in layout.lines] == sorted((edge.effect for edge in EDGES), reverse=True)
    bends = {(line.edge.layer, line.edge.head): line.bend for line in layout.lines}
    assert bends[3, 0] == 0 and {bends[9, 6], bends[9, 9]} == {-0.5, 0.5}
    assert {bends[10, 0], bends[10, 7], bends[10, 10]} == {-1, 0, 1}
    assert layout.streams == [None, 11, None, 4, 6, None, None, None, None, 8, None, None, None, 12]
