"""The page's interactive piece: base and sparse circuit side by side, and what each head reads on an example.

Python says where things are, `assets/circuits.js` draws. All text travels as JSON that cannot leave its element and
reaches the page as text, never as HTML.
"""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from lit_sparse.common.formatting import percent, visible, visible_token
from lit_sparse.report.circuits.component_graph import Grid, Place, circuit_edges
from lit_sparse.report.circuits.values import SIDES, Details, measured
from lit_sparse.report.shared.page_data import FLOORS, json_for_html

ATTENTION_BUDGET = 200_000  # characters of attention data of one task and model
LISTED = 2_000  # edges of one circuit in the page


def circuits_explorer(details: Details) -> str:
    """The section as HTML, with its data; `circuits.js` has to follow it in the page. Empty without a circuit."""
    tasks = [task for task in measured(details) if any(task[side] and task[side]["circuit"] for side in SIDES)]
    if not tasks:
        return ""
    options = "".join(f'<option value="{i}">{escape(visible(t["task"]))}</option>' for i, t in enumerate(tasks))
    legend = "".join(f'<span class="of-{kind}">{words}</span>' for kind, words in (
        ("query", "queries"), ("key", "keys"), ("value", "values"), ("mlp", "MLPs"), ("logits", "logits")))  # fmt: skip
    panels = "".join(
        f'<figure class="circuit {side}"><figcaption><span class="dot {side}"></span><b>{side.capitalize()}</b> '
        f'<span id="shown-{side}"></span></figcaption>'
        f'<svg id="drawing-{side}" role="group" aria-label="Circuit of the {side} model"></svg></figure>'
        for side in SIDES
    )
    data = json_for_html([encode_task(task) for task in tasks])
    return f"""<section class="circuits" aria-labelledby="circuits-title">
<h2 id="circuits-title">Look into a circuit</h2>
<noscript><p>This piece needs JavaScript; the pictures beside this file show the strongest edges without.</p></noscript>
<div class="controls">
<label>Task <select id="task">{options}</select></label>
<label class="slide">Edges shown <input id="edges" type="range" min="0" max="1000" value="1000" step="1"></label>
<output id="edges-shown" for="edges"></output>
<span class="soft keys">Into {legend}</span>
</div>
<p class="soft">Layers go upward; the bar below heads is where the keys and values that they share are read. The
stronger the line, the larger the edge's score. Point at a node, or go to one with Tab and the arrow keys (Escape
leaves), to see what it reads and where it writes.</p>
<div class="stage"><div class="panels">{panels}</div>
<div id="node" class="node" role="region" aria-label="The node looked at"></div></div>
<script type="application/json" id="circuits-data">{data}</script>
</section>"""


def encode_task(task: Mapping[str, Any]) -> dict[str, Any]:
    """What the script needs of a task; a side without a circuit is null."""
    return {"task": visible(task["task"])} | {side: _encode_model(task[side]) for side in SIDES}


def _encode_model(model: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Nodes [name, kind, x, y], readers [name, kind, x, y, [node, ...]] and edges as one flat list
    [writer, reader, score, ...], strongest first; nodes and readers are given by index."""
    if model is None or model["circuit"] is None:
        return None
    grid = Grid.of(model["shape"])
    nodes: dict[str, int] = {}
    readers: dict[str, tuple[int, Place]] = {}

    def node(name: str) -> int:
        return nodes.setdefault(name, len(nodes))

    node("embedding"), node("logits")
    edges: list[float] = []
    for edge in circuit_edges(model, LISTED):
        reader, _ = readers.setdefault(edge.reader.name, (len(readers), edge.reader))
        edges += [node(edge.writer.name), reader, float(f"{edge.score:.3g}")]
    for _, place in readers.values():
        for name in place.nodes:
            node(name)
    places = [grid.place(name) for name in nodes]
    heads = {writer.removeprefix("head ") for writer, _, _ in model["circuit"]["edges"] if writer.startswith("head ")}
    circuit = model["circuit"]
    return {
        "layers": grid.layers, "heads": grid.heads, "top": grid.top, "mlp": grid.mlp_x,
        "count": circuit["count"], "share": percent(circuit["share"]),
        "nodes": [[place.name, place.kind, place.x, place.y] for place in places],
        "readers": [
            [place.name, place.kind, round(place.x, 2), round(place.y, 2), [nodes[name] for name in place.nodes]]
            for _, place in readers.values()
        ],
        "edges": edges,
    } | encode_example(model["example"], heads)  # fmt: skip


def encode_example(example: Mapping[str, Any], heads: set[str], budget: int = ATTENTION_BUDGET) -> dict[str, Any]:
    """The prompt's tokens, and of each of these heads the number of its open attention edges and those of weight
    >= floor as [query * T + key, weight in thousandths, ...]; the floor rises until all is within the budget."""
    tokens = [visible_token(token) for token in example["tokens"]]
    chosen = {name: example["heads"].get(name, []) for name in sorted(heads)}
    lists: dict[str, list[int]] = {}
    for floor in (0.0, *FLOORS):
        lists = {
            name: [
                number for q, k, w in edges if w >= floor for number in (int(q) * len(tokens) + int(k), round(1000 * w))
            ]
            for name, edges in chosen.items()
        }
        if len(json.dumps(lists, separators=(",", ":"))) <= budget:
            break
    attention = {name: [len(edges), *lists[name]] for name, edges in chosen.items()}
    return {"tokens": tokens, "floor": floor, "attention": attention}
