"""Positions of a circuit's nodes and edges, the same for plots and page.

x counts columns: one a head, then one for the MLPs. y counts layers: the embedding at 0, the heads of layer l at
l + 1, its MLP half a layer above, the logits on top. Queries arrive at their head; keys and values at the bar below
the heads that share them.
"""

from typing import NamedTuple

from lit_sparse.records.circuits import Circuit, Shape

MLP_LIFT, BAR_DROP = 0.5, 0.34


class Place(NamedTuple):
    """A node, or a reader with the nodes that read through it (several, where heads share keys and values)."""

    name: str
    kind: str
    x: float
    y: float
    nodes: tuple[str, ...]


class Grid(NamedTuple):
    """A model's shape: layers, query heads and key/value heads in each."""

    layers: int
    heads: int
    kv_heads: int

    @classmethod
    def of(cls, shape: Shape) -> "Grid":
        return cls(shape.layers, shape.heads_per_layer, shape.kv_heads_per_layer)

    @property
    def mlp_x(self) -> float:
        return self.heads + 0.25

    @property
    def middle(self) -> float:
        return (self.heads - 1) / 2

    @property
    def top(self) -> float:
        return self.layers + 1.25

    def sharing(self, group: int) -> list[int]:
        """The heads that read through one key/value head."""
        return [head for head in range(self.heads) if head * self.kv_heads // self.heads == group]

    def place(self, name: str) -> Place:
        """Position of a writer or reader by name: head 3.4, mlp 3, embedding, query 3.4, key 3.1, value 3.1, logits.

        Raises:
            ValueError: no such writer or reader is in the model.
        """
        kind, _, where = name.partition(" ")
        numbers = [int(part) for part in where.split(".")] if where else []
        limits = {
            "embedding": [], "logits": [], "mlp": [self.layers], "head": [self.layers, self.heads],
            "query": [self.layers, self.heads], "key": [self.layers, self.kv_heads],
            "value": [self.layers, self.kv_heads],
        }.get(kind)  # fmt: skip
        if (
            limits is None
            or len(numbers) != len(limits)
            or any(n >= end for n, end in zip(numbers, limits, strict=True))
        ):
            raise ValueError(f"{name!r} is no writer or reader of a model with {self}")
        if kind == "embedding":
            return Place(name, kind, self.middle, 0, (name,))
        if kind == "logits":
            return Place(name, kind, self.middle, self.top, (name,))
        y = numbers[0] + 1.0
        if kind == "mlp":
            return Place(name, kind, self.mlp_x, y + MLP_LIFT, (name,))
        if kind in ("head", "query"):
            return Place(name, kind, numbers[1], y, (f"head {where}",))
        heads = self.sharing(numbers[1])
        middle, side = (heads[0] + heads[-1]) / 2, 0.12 + 0.06 * (len(heads) - 1)
        x = middle - side if kind == "key" else middle + side
        return Place(name, kind, x, y - BAR_DROP, tuple(f"head {numbers[0]}.{head}" for head in heads))


class Edge(NamedTuple):
    writer: Place
    reader: Place
    score: float


def circuit_edges(grid: Grid, circuit: Circuit, most: int | None = None) -> list[Edge]:
    """The strongest edges of a model's circuit, strongest first."""
    listed = sorted(circuit.edges, key=lambda edge: -abs(edge.score))[:most]
    return [Edge(grid.place(edge.writer), grid.place(edge.reader), edge.score) for edge in listed]


def curve(edge: Edge) -> list[tuple[float, float]]:
    """The edge as a cubic Bezier curve: start, two control points, end. It leaves and arrives upright, and swings
    aside where it would run straight through the nodes of its own column."""
    (x0, y0), (x1, y1) = edge.writer[2:4], edge.reader[2:4]
    rise = 0.45 * (y1 - y0)
    aside = min(0.25 + 0.05 * (y1 - y0), 0.9) if abs(x1 - x0) < 0.5 and y1 - y0 > 1 else 0.0
    return [(x0, y0), (x0 + aside, y0 + rise), (x1 + aside, y1 - rise), (x1, y1)]
