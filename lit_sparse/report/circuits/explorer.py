"""The page's interactive part: base and sparse circuit side by side, and each head's attention on an example.

Python says where things are, `assets/circuits.js` draws. All text travels as JSON that cannot leave its element and
reaches the page as text, never as HTML.
"""

import json
from typing import Any, NamedTuple

from lit_sparse.common.formatting import percent, visible, visible_token
from lit_sparse.records.circuits import SIDES, CircuitExample, CircuitsResult, ModelOnTask, TaskResult
from lit_sparse.report.circuits.component_graph import Grid, Place, circuit_edges
from lit_sparse.report.circuits.values import mean_curve
from lit_sparse.report.shared.page_data import FLOORS

ATTENTION_BUDGET = 200_000  # characters of attention data of one task and model
LISTED = 2_000  # edges of one circuit in the page


class CircuitsExplorer(NamedTuple):
    """Data of `circuits_explorer.html`: names of tasks, and numbers by task."""

    tasks: list[str]
    data: list[dict[str, Any]]

    @classmethod
    def of(cls, result: CircuitsResult) -> "CircuitsExplorer | None":
        """None without a circuit."""
        tasks = [task for task in result.measured if any(_has_circuit(task.of(side)) for side in SIDES)]
        return cls([task.task for task in tasks], [encode_task(task) for task in tasks]) if tasks else None


def _has_circuit(model: ModelOnTask | None) -> bool:
    return model is not None and model.circuit is not None


def encode_task(task: TaskResult) -> dict[str, Any]:
    """Data of a task for the script; a side without a circuit is null."""
    return {"task": visible(task.task)} | {side: _encode_model(task.of(side)) for side in SIDES}


def _encode_model(model: ModelOnTask | None) -> dict[str, Any] | None:
    """Faithfulness by size [edges, share, ...], nodes [name, kind, x, y], readers [name, kind, x, y, [node, ...]] and
    edges as one flat list [writer, reader, score, ...], strongest first; nodes and readers are given by index."""
    if model is None or model.circuit is None:
        return None
    grid, circuit = Grid.of(model.shape), model.circuit
    nodes: dict[str, int] = {}
    readers: dict[str, tuple[int, Place]] = {}

    def node(name: str) -> int:
        return nodes.setdefault(name, len(nodes))

    node("embedding"), node("logits")
    edges: list[float] = []
    for edge in circuit_edges(grid, circuit, LISTED):
        reader, _ = readers.setdefault(edge.reader.name, (len(readers), edge.reader))
        edges += [node(edge.writer.name), reader, float(f"{edge.score:.3g}")]
    for _, place in readers.values():
        for name in place.nodes:
            node(name)
    runs = [run.edge for run in model.runs if run.edge.sizes]
    curve = zip(*mean_curve(runs), strict=True) if runs else ()
    places = [grid.place(name) for name in nodes]
    heads = {edge.writer.removeprefix("head ") for edge in circuit.edges if edge.writer.startswith("head ")}
    return {
        "layers": grid.layers, "heads": grid.heads, "top": grid.top, "mlp": grid.mlp_x,
        "count": circuit.count, "share": percent(circuit.share),
        "kept": [number for size, share in curve for number in (int(size), round(float(share), 3))],
        "nodes": [[place.name, place.kind, place.x, place.y] for place in places],
        "readers": [
            [place.name, place.kind, round(place.x, 2), round(place.y, 2), [nodes[name] for name in place.nodes]]
            for _, place in readers.values()
        ],
        "edges": edges,
    } | encode_example(model.example, heads)  # fmt: skip


def encode_example(example: CircuitExample, heads: set[str], budget: int = ATTENTION_BUDGET) -> dict[str, Any]:
    """The prompt's tokens, and of each of these heads the number of its open attention edges and those of weight
    >= floor as [query * T + key, weight in thousandths, ...]; the floor rises until all is within the budget."""
    tokens = [visible_token(token) for token in example.tokens]
    chosen = {name: example.heads.get(name, []) for name in sorted(heads)}
    lists: dict[str, list[int]] = {}
    for floor in (0.0, *FLOORS):
        lists = {
            name: [number for q, k, w in edges if w >= floor for number in (q * len(tokens) + k, round(1000 * w))]
            for name, edges in chosen.items()
        }
        if len(json.dumps(lists, separators=(",", ":"))) <= budget:
            break
    attention = {name: [len(edges), *lists[name]] for name, edges in chosen.items()}
    return {"tokens": tokens, "floor": floor, "attention": attention}
