"""What a Jupyter cell shows of records: their page in a frame of its own, or a small table."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lit_sparse.common.formatting import visible
from lit_sparse.records.attention import SentenceAttention
from lit_sparse.records.circuits import Comparison
from lit_sparse.records.graph import GraphFile
from lit_sparse.records.run import RunRecord
from lit_sparse.records.run_summary import RunSummary
from lit_sparse.records.sentence_circuit import SentenceCircuit, SentenceCircuits
from lit_sparse.records.trace import Trace
from lit_sparse.report.circuits.page import circuits_html
from lit_sparse.report.graph.page import graph_html
from lit_sparse.report.notebook.attention import attention_html
from lit_sparse.report.notebook.frame import LARGEST, SAVE, framed
from lit_sparse.report.notebook.graph import small_graphs
from lit_sparse.report.run.page import page_html
from lit_sparse.report.run.plots import render_plots
from lit_sparse.report.run.wording import summary_rows
from lit_sparse.report.sentence.page import sentence_html
from lit_sparse.report.shared.rendering import render, write_html
from lit_sparse.report.trace.page import trace_html


class _Kind(NamedTuple):
    """How records of one type are shown.

    page: of one record or two.
    most: how many one page shows.
    height: of its frame, in pixels, by the record.
    title: of the frame.
    """

    page: Callable[[Sequence[Any]], str]
    most: int
    height: Callable[[Any], int]
    title: str
    permissions: str = ""


def _circuits(records: Sequence[SentenceCircuit]) -> str:
    return sentence_html(SentenceCircuits(circuits=list(records)))


def _attention_height(attention: SentenceAttention) -> int:
    """All of it, for a sentence of some thirty tokens."""
    layers_and_words = 400 + 24 * attention.model.weights.shape[1]
    return int(min(1100, layers_and_words + 28 * len(attention.tokens)))


_KINDS: dict[type, _Kind] = {
    Trace: _Kind(trace_html, 2, lambda _: 960, "Trace of a prompt"),
    GraphFile: _Kind(graph_html, 2, lambda _: 860, "Attribution graph", "allow-downloads"),
    SentenceCircuit: _Kind(_circuits, 2, lambda _: 720, "Circuit of a sentence"),
    SentenceCircuits: _Kind(lambda records: sentence_html(records[0]), 1, lambda _: 720, "Circuit of a sentence"),
    Comparison: _Kind(lambda records: circuits_html(records[0], {}), 1, lambda _: 720, "Comparison of circuits"),
    RunRecord: _Kind(
        lambda records: page_html(records[0], render_plots(records[0])), 1, lambda _: 860, "Report of a run"
    ),
    SentenceAttention: _Kind(
        lambda records: attention_html(records[0]), 1, _attention_height, "Attention of a sentence"
    ),
}


@dataclass(frozen=True, repr=False)
class View:
    """Records on one page. Jupyter shows the page, and `save` writes it."""

    records: Sequence[Any]

    def __post_init__(self) -> None:
        kinds = {type(record) for record in self.records}
        if len(kinds) != 1 or (kind := kinds.pop()) not in _KINDS:
            names = ", ".join(sorted({type(record).__name__ for record in self.records}))
            raise ValueError(f"a view shows records of one kind ({_names()}), not {names or 'nothing'}")
        if len(self.records) > _KINDS[kind].most:
            raise ValueError(f"a view shows {_KINDS[kind].most} of {kind.__name__} at most, not {len(self.records)}")

    @property
    def _kind(self) -> _Kind:
        return _KINDS[type(self.records[0])]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, with nothing left out, and give its path."""
        return write_html(self._kind.page(self.records), path)

    def _repr_html_(self) -> str:
        kind = self._kind
        records, note = self.records, ""
        if isinstance(records[0], GraphFile):
            records, note = small_graphs(records)
        page = kind.page(records)
        if len(page) > LARGEST:
            note = f"{kind.title}: a page of {len(page) / 1e6:.1f} MB, too large for a notebook. {SAVE}"
            return render("notebook_note.html", text=note)
        frame = framed(page, kind.title, kind.height(records[0]), kind.permissions)
        return render("notebook_note.html", text=f"{note} {SAVE}") + frame if note else frame

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.records))


def side_by_side(*records: Any) -> View:
    """A view of one record or of two: traces, circuits or graphs of one prompt in two models.

    `side_by_side(sparse, dense).save("page.html")` writes the page that a notebook shows.

    Raises:
        ValueError: records of different kinds, more than fit on a page, or a kind without one.
    """
    return View(records)


def notebook_html(record: Any) -> str:
    """The view of one record as HTML that can stand in a notebook."""
    if isinstance(record, RunSummary):
        title = f"Run: {visible(record.model or 'a language model')}"
        return render("notebook_table.html", title=title, rows=summary_rows(record))
    return View([record])._repr_html_()


def _names() -> str:
    return ", ".join(kind.__name__ for kind in _KINDS)
