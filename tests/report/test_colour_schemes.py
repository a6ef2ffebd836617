"""Plots on the pages of readers who prefer dark ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lit_sparse.report.circuits.page import write_circuits_page
from lit_sparse.report.circuits.plots import ratio_plot
from lit_sparse.report.run.page import write_page
from lit_sparse.report.run.plots import END, START, edges_by_head, training_curves
from lit_sparse.report.shared import style
from lit_sparse.report.trace.page import write_trace_page
from lit_sparse.report.trace.plot import trace_figure
from tests.report.circuits_example import make_circuits
from tests.report.trace.test_page import make_trace

PAPER = {False: (255, 255, 255), True: (0x14, 0x18, 0x1D)}  # of the page, light and dark
SIZE = (900, 4000)


def run_page(path: Path, record) -> Path:
    figures = {
        "training.png": training_curves(record.history, record.summary),
        "edges.png": edges_by_head({START: record.edges_start, END: record.edges_end}),
    }
    return write_page(record, path, {name: style.png(one, dpi=60) for name, one in figures.items()})


def trace_page(path: Path, record) -> Path:
    trace = make_trace([" The", " cat", " sat"])
    return write_trace_page([trace], path, style.png(trace_figure([trace]), dpi=60))


def circuits_page(path: Path, record) -> Path:
    found = make_circuits(("ioi",), seeds=1)
    return write_circuits_page(found, path, {"ratios.png": style.png(ratio_plot(found), dpi=60)})


@pytest.mark.parametrize("make", [run_page, trace_page, circuits_page])
def test_plots_stand_on_the_page_s_own_paper(make: Callable[..., Path], tmp_path, make_record, screenshot):
    record = make_record()
    record.example = None
    path = make(tmp_path / "page.html", record)
    for dark, paper in PAPER.items():
        pixels = screenshot(path, SIZE, dark)
        on_paper = np.abs(pixels * 255 - np.array(paper)).max(-1) <= 2
        assert on_paper.mean() > 0.6, "page and plots together"
        bright = pixels.min(-1) > 0.9
        assert (bright.mean() < 0.02) == dark
