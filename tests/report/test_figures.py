"""No plot has words on top of other words, or words that its edge cuts off."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from lit_sparse.records.sentence_circuit import SentenceCircuits
from lit_sparse.report.circuits.drawing import circuit_drawing
from lit_sparse.report.circuits.plots import curves, ratio_plot
from lit_sparse.report.graph.plot import heads_figure
from lit_sparse.report.run.attention_maps import attention_example
from lit_sparse.report.run.plots import END, START, edges_by_head, training_curves
from lit_sparse.report.sentence.plot import circuit_figure
from lit_sparse.report.trace.plot import trace_figure
from tests.report.circuits_example import make_circuits
from tests.report.sentence_example import make_circuit
from tests.report.trace.test_page import make_trace

LONG_NAME = "a-folder-with-a-long-name/and-a-model-with-a-longer-one-2048"


def words(figure: Figure) -> dict[str, Bbox]:
    """The boxes of titles, labels of axes and legends, in pixels."""
    figure.canvas.draw()
    found: dict[str, Bbox] = {}

    def add(name: str, text: Text) -> None:
        if text.get_visible() and text.get_text():
            found[f"{name} {text.get_text()!r}"] = text.get_window_extent()

    for part in (figure, *figure.subfigs):
        for text in part.texts:
            add("figure", text)
        for number, legend in enumerate(part.legends):
            found[f"legend {number} of the figure"] = legend.get_window_extent()
    for number, axes in enumerate(figure.axes):
        for child in axes.get_children():
            if isinstance(child, Text) and child not in axes.texts:
                add(f"title {number}", child)
        add(f"x axis {number}", axes.xaxis.label)
        add(f"y axis {number}", axes.yaxis.label)
        if (legend := axes.get_legend()) is not None:
            found[f"legend {number}"] = legend.get_window_extent()
    return found


def traces(number: int) -> Figure:
    made = [make_trace([" The", " cat", " sat", " on", " the", " mat"], seed=s, sparse=s == 0) for s in range(number)]
    for trace in made:
        trace.model = LONG_NAME
        trace.open, trace.allowed = 1_234_567, 12_345_678
    return trace_figure(made)


def sentences() -> Figure:
    return circuit_figure(SentenceCircuits(circuits=[make_circuit(), make_circuit(sparse=False)]))


CIRCUITS = make_circuits()
TASK = CIRCUITS.result.tasks[0]
FIGURES: dict[str, Callable[[], Figure]] = {
    "one trace": lambda: traces(1),
    "two traces": lambda: traces(2),
    "sentence": sentences,
    "ratios": lambda: ratio_plot(CIRCUITS),
    "curves": lambda: curves(CIRCUITS, TASK),
    "circuit": lambda: circuit_drawing("ioi, base model", TASK.base.shape, TASK.base.circuit),
    "heads": lambda: heads_figure({LONG_NAME: [[0.5, 0.4, 0.1]], f"{LONG_NAME}-base": [[0.1] * 10]}),
    "edges": lambda: edges_by_head({START: np.full((30, 9), 0.3), END: np.full((30, 9), 0.01)}),
}


@pytest.fixture(params=[*FIGURES, "training", "attention"])
def figure(request, make_record) -> Figure:
    record = make_record(steps=60)
    own = {
        "training": lambda: training_curves(record.history, record.summary),
        "attention": lambda: attention_example(record.example),
    }
    return (FIGURES | own)[request.param]()


def test_words_of_a_plot_do_not_overlap(figure):
    boxes = words(figure)
    assert len(boxes) > 2
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        assert not a.padded(-0.5).overlaps(b.padded(-0.5)), f"{one} lies over {other}"
    for name, box in boxes.items():
        inside = figure.bbox.padded(1)
        assert inside.contains(*box.min) and inside.contains(*box.max), f"{name} is cut off"
