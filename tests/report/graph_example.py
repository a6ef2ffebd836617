"""Attribution graphs made of random numbers, of any size and shaped as real ones."""

import numpy as np

from lit_sparse.records.feature_examples import Example, Examples
from lit_sparse.records.graph import FEATURE, GraphFile, Link, Metadata, Node, QKTracing, QParams
from lit_sparse.records.graph_nodes import cumulative, error_node, feature_node, head_node, logit_node, token_node
from lit_sparse.records.graph_summary import GraphSummary

WORDS = [" The", " opposite", " of", " large", " is", " small", ",", " and", " the", " capital", " of", " France"]
FEATURES = 128


def make_graph(
    tokens: list[str] | None = None,
    *,
    nodes: int = 60,
    links: int = 240,
    layers: int = 4,
    heads: int = 3,
    sparse: bool = True,
    seed: int = 0,
    answers: tuple[str, ...] = (" small", " big"),
) -> GraphFile:
    """A graph of `nodes` nodes and `links` links, all from earlier to later ones, heads between positions."""
    draw = np.random.default_rng(seed)
    tokens = list(WORDS[:6]) if tokens is None else tokens
    last = len(tokens) - 1
    made = [token_node(100 + position, position) for position in range(len(tokens))]
    top = [
        logit_node(layers, 7 + place, last, token=answer, probability=0.6 / (place + 1), target=place == 0)
        for place, answer in enumerate(answers)
    ]
    wanted = nodes - len(made) - len(top)
    cells = {}
    while len(cells) < wanted:
        layer, position = int(draw.integers(layers)), int(last * draw.beta(2, 1) + 0.5)
        kind = draw.choice(["feature", "head", "error"], p=[0.68, 0.24, 0.08])
        index = {"feature": int(draw.integers(FEATURES)), "head": int(draw.integers(heads)), "error": 0}[kind]
        cells[layer, position, kind, index] = None
    own = draw.dirichlet(np.full(wanted, 0.15)) if wanted else np.zeros(0)
    for (layer, position, kind, index), share, reach in zip(sorted(cells), own, cumulative(own), strict=True):
        both = {"influence": float(reach), "own_influence": float(share)}
        if kind == "feature":
            activation = float(draw.exponential())
            made.append(feature_node(layer, index, position, activation=activation, **both))
        elif kind == "head":
            made.append(_head(draw, layer, index, position, heads, tokens, both))
        else:
            made.append(error_node(layer, position, **both))
    everything = made + top
    pairs = _pairs(draw, everything, links)
    file_links = [
        Link(source=everything[a].node_id, target=everything[b].node_id, weight=float(draw.normal() ** 3))
        for a, b in pairs
    ]
    summary = GraphSummary(
        prompt="".join(tokens), nodes=nodes, links=len(file_links), heads_for_80=5 if sparse else 41,
        replacement_error=0.31, explained_variance=0.87, seconds=12.4, model="tiny-sparse" if sparse else "tiny",
        sparse=sparse, answer=answers[0], probability=0.6, heads=layers * heads,
    )  # fmt: skip
    metadata = Metadata(
        slug="example", scan="tiny-clt", prompt_tokens=tokens, prompt="".join(tokens), node_threshold=0.8,
        summary=summary,
    )  # fmt: skip
    return GraphFile(metadata=metadata, qParams=QParams(), nodes=everything, links=file_links)


def make_examples(graph: GraphFile, seed: int = 0) -> Examples:
    """A few contexts for every feature of the graph."""
    draw = np.random.default_rng(seed)
    words = [*WORDS, *graph.metadata.prompt_tokens]
    found = {}
    for node in graph.nodes:
        if node.feature_type == FEATURE:
            found[node.node_id.rpartition("_")[0]] = [_context(draw, words) for _ in range(3)]
    return Examples(features=found)


def _context(draw: np.random.Generator, words: list[str]) -> Example:
    values = np.maximum(0, draw.normal(-0.5, 1, 24))
    peak = int(draw.integers(24))
    values[peak] = 3.0
    return Example(tokens=[words[i] for i in draw.integers(len(words), size=24)], values=values.tolist(), peak=peak)


def _head(
    draw: np.random.Generator, layer: int, index: int, position: int, heads: int, tokens: list[str], both: dict
) -> Node:
    keys = sorted({int(key) for key in draw.integers(position + 1, size=3)})
    weights = draw.dirichlet(np.ones(len(keys)))
    query, key = f"E_{100 + position}_{position}", f"E_{100 + keys[0]}_{keys[0]}"
    tracing = QKTracing(
        pair_wise_contributors=[(query, key, 1.2), (f"0_3_{position}", key, -0.4), (query, f"0_h1_{keys[0]}", 0.2)],
        top_q_marginal_contributors=[(query, 1.3), (f"0_3_{position}", -0.4)],
        top_k_marginal_contributors=[(key, 0.9)],
        key=keys[0], attention_logit=1.5, remainder=0.4, gate_logit=2.1, gate_cutoff=-4.6, gate_sharpness=2.0,
    )  # fmt: skip
    return head_node(
        layer, index, position, activation=float(draw.normal()), head_share=0.5 ** (1 + layer * heads + index),
        attention=[(key, float(weight)) for key, weight in zip(keys, weights, strict=True)],
        qk_tracing_results=tracing if index != 1 else None,
        qk_note="Queries and keys of this model are not linear in what was written." if index == 1 else None, **both,
    )  # fmt: skip


def _pairs(draw: np.random.Generator, nodes: list[Node], links: int) -> list[tuple[int, int]]:
    """Different (source, target) places: upwards, at one position unless the target is a head."""
    depth = {"embedding": -1.0, "lorsa": 0.2, "cross layer transcoder": 0.5, "mlp reconstruction error": 0.5}
    level = np.array(
        [-1.0 if n.layer == "E" else int(n.layer) + depth.get(n.feature_type, 0.0) for n in nodes], dtype=float
    )
    position = np.array([node.ctx_idx for node in nodes])
    head = np.array([node.feature_type == "lorsa" for node in nodes])
    error = np.array([node.feature_type == "mlp reconstruction error" for node in nodes])
    allowed = (level[:, None] < level[None]) & ~error[None]
    allowed &= np.where(head[None], position[:, None] <= position[None], position[:, None] == position[None])
    sources, targets = np.nonzero(allowed)
    chosen = draw.choice(len(sources), size=min(links, len(sources)), replace=False)
    return [(int(sources[i]), int(targets[i])) for i in chosen]
