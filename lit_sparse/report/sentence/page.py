"""The circuits of a sentence as one HTML file: works offline, loads nothing, escapes all text that comes from outside.

Python writes all text and the numbers, `assets/sentence.js` draws. No text travels in the data.
"""

import os
from pathlib import Path
from typing import NamedTuple

from lit_sparse.common.formatting import MISSING
from lit_sparse.records.sentence_circuit import SentenceCircuit, SentenceCircuits, by_strength
from lit_sparse.report.sentence.layout import lay_out
from lit_sparse.report.sentence.snippet import snippet
from lit_sparse.report.sentence.words import (
    agreement,
    comparison,
    controls,
    headline,
    key_name,
    loss,
    magnitude,
    off,
    outcome_rows,
    position,
    sentence,
)
from lit_sparse.report.shared.rendering import render, write_html


class EdgeRow(NamedTuple):
    """A line of the list of edges."""

    name: str
    query: str
    key: str
    weight: str
    loss: str


class Side(NamedTuple):
    """One model's part of the page."""

    circuit: SentenceCircuit
    headline: str
    outcomes: list[list[str]]
    columns: list[str]
    edges: list[EdgeRow]
    notes: list[str]
    code: str


def write_sentence_page(circuits: SentenceCircuits, path: str | os.PathLike[str], picture: bytes | None = None) -> Path:
    """Write the page and give its path.

    Args:
        circuits: of one prompt in one or two models.
        path: the HTML file, replaced whole if it exists.
        picture: the PNG of `circuit_figure`, for those who read without JavaScript.
    """
    return write_html(sentence_html(circuits, picture), path)


def sentence_html(circuits: SentenceCircuits, picture: bytes | None = None) -> str:
    """The page as text."""
    return render(
        "sentence.html",
        first=circuits.circuits[0],
        sides=[_side(circuit, place) for place, circuit in enumerate(circuits.circuits)],
        comparison=comparison(circuits.circuits),
        off=off(circuits.circuits[0]),
        controlled=any(circuit.controls for circuit in circuits.circuits),
        picture=picture,
        data=[encode_circuit(circuit) for circuit in circuits.circuits],
    )


def encode_circuit(circuit: SentenceCircuit) -> dict[str, object]:
    """Numbers of one drawing: edges in columns, the strongest first."""
    layout = lay_out(circuit)
    edges = [line.edge for line in layout.lines]
    return {
        "layers": layout.layers,
        "streams": layout.streams,
        "labelled": layout.labelled,
        "row": [line.row for line in layout.lines],
        "bend": [line.bend for line in layout.lines],
        "layer": [edge.layer for edge in edges],
        "head": [edge.head for edge in edges],
        "query": [edge.query for edge in edges],
        "key": [edge.key for edge in edges],
        "effect": [edge.effect for edge in edges],
    }


def _side(circuit: SentenceCircuit, place: int) -> Side:
    rows = outcome_rows(circuit)
    heads = ["", "likeliest token", "answer's probability", "log-odds (nats)", "f", "KL (nats)"]
    shown = [index for index in range(len(heads)) if index < 3 or any(row[index] != MISSING for row in rows)]
    return Side(
        circuit=circuit,
        headline=headline(circuit),
        outcomes=[[row[index] for index in shown] for row in rows],
        columns=[heads[index] for index in shown],
        edges=[
            EdgeRow(
                f"L{edge.layer} H{edge.head}", position(circuit, edge.query), key_name(circuit, edge),
                magnitude(edge.weight), loss(circuit, edge),
            )
            for edge in by_strength(circuit.edges)
        ],
        notes=[sentence(note) for note in (controls(circuit), agreement(circuit)) if note is not None],
        code=snippet(circuit, place),
    )  # fmt: skip
