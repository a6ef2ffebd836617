"""Layout of a circuit's edges in a drawing, in units that the picture and the page both scale.

Positions go along x. Layers go upwards, only those that have edges, each a row of height 1: an edge leads from its
key's position below the row to its query's above it.
"""

from collections import Counter
from typing import NamedTuple

from lit_sparse.records.sentence_circuit import KeptEdge, SentenceCircuit, by_strength

MOST_LABELS = 40  # edges that a drawing names


class Line(NamedTuple):
    """An edge in row `row`. bend: 0 for a straight line; lines between the same two points bend apart, at most by
    1 to either side."""

    edge: KeptEdge
    row: int
    bend: float


class Layout(NamedTuple):
    """layers: of each row, from below. lines: the edges, the strongest first. streams: how far up each position is in
    use, None where no edge touches it."""

    layers: list[int]
    lines: list[Line]
    streams: list[int | None]

    @property
    def labelled(self) -> bool:
        return len(self.lines) <= MOST_LABELS


def lay_out(circuit: SentenceCircuit) -> Layout:
    """The drawing of a circuit. The last position is in use up to the top, where the answer is read."""
    edges = by_strength(circuit.edges)
    layers = sorted({edge.layer for edge in edges})
    rows = {layer: row for row, layer in enumerate(layers)}
    together = Counter((edge.layer, edge.query, edge.key) for edge in edges)
    drawn: Counter[tuple[int, int, int]] = Counter()
    lines: list[Line] = []
    streams: list[int | None] = [None] * len(circuit.tokens)
    for edge in edges:
        place = (edge.layer, edge.query, edge.key)
        row = rows[edge.layer]
        spread = (together[place] - 1) / 2
        lines.append(Line(edge, row, (drawn[place] - spread) / max(1.0, spread)))
        drawn[place] += 1
        for where, top in ((edge.key, row), (edge.query, row + 1)):
            streams[where] = max(streams[where] or 0, top)
    if streams:
        streams[-1] = len(layers)
    return Layout(layers, lines, streams)
