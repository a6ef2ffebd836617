"""One model on one task: how well it does it, which components it does it with, and how few of them are enough."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.edge_scores import eap, exact
from lit_sparse.circuits.faithfulness import Ablation, Curve, Evaluator, Ranking, curve
from lit_sparse.circuits.forward import run
from lit_sparse.circuits.node_scores import patch_nodes
from lit_sparse.circuits.prompts import Prompts, group
from lit_sparse.circuits.tasks import Pair, Task, Tokenizer
from lit_sparse.models.tokens import token_text

Method = Literal["eap", "eap-ig", "exact"]

DRAWN_SHARE = 0.9
"""Of the behaviour, that the circuit keeps which is drawn."""

DRAWN_EDGES = 2000
"""Edges of that circuit that are written down, strongest first."""

SIGNIFICANT = 0.01
"""A model whose accuracy is better than chance by accident more often than this cannot do the task."""


@dataclass(frozen=True)
class Settings:
    """How circuits are found and measured.

    Args:
        method: "eap" and "eap-ig" by gradients, "exact" by a patch an edge and a head (small models).
        ablation: what replaces an activation outside the circuit (see `Evaluator`).
        prompts: pairs to find circuits on, and as many others to measure them on.
        interpolations: gradients that "eap-ig" averages.
        shares: of the behaviour, that the smallest circuit is asked for.
        batch_size: prompts at a time; memory grows with it.
    """

    method: Method = "eap-ig"
    ablation: Ablation = "patch"
    prompts: int = 32
    interpolations: int = 5
    shares: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"method is one of {', '.join(get_args(Method))}, not {self.method!r}")
        if self.ablation not in get_args(Ablation):
            raise ValueError(f"ablation is one of {', '.join(get_args(Ablation))}, not {self.ablation!r}")
        if min(self.prompts, self.interpolations, self.batch_size) < 1:
            raise ValueError("prompts, interpolations and batch_size must be at least 1")
        if not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"shares are in (0, 1], not {self.shares}")


Bars = Callable[[str, int | None], "tqdm[Any]"]
"""Makes a progress bar from a description and a total."""


def score_edges(
    stack: Stack, batches: Sequence[Prompts], settings: Settings, bars: Bars = tqdm
) -> tuple[Float[Tensor, "writer reader"], Float[Tensor, " writer"]]:
    """Scores of edges and of writers, averaged over prompts. By gradients, a writer's score is the sum of its edges':
    both are first-order effects of the same change."""
    number = sum(map(len, batches))
    edges, nodes = torch.zeros(stack.graph.edges.shape), torch.zeros(len(stack.graph.writers))
    steps = settings.interpolations if settings.method == "eap-ig" else 1
    work = number * steps if settings.method != "exact" else None
    with bars("scoring edges", work) as bar:
        for batch in batches:
            weight = len(batch) / number
            if settings.method == "exact":
                edges += weight * exact(stack, batch.clean, batch.corrupted, batch.metric, bar=bar).float()
                nodes += weight * patch_nodes(stack, batch.clean, batch.corrupted, batch.metric).noising
            else:
                found = eap(stack, batch.clean, batch.corrupted, batch.metric, interpolations=steps, bar=bar).float()
                edges, nodes = edges + weight * found, nodes + weight * found.sum(1)
    return edges, nodes


def behaviour(stack: Stack, pairs: Sequence[Pair], settings: Settings) -> dict[str, Any]:
    """Accuracy (log-odds above 0), the chance of it by guessing, and mean log-odds, in all and by template."""
    values: list[float] = []
    order: list[Pair] = []
    vocabulary = stack.vocabulary
    for name in dict.fromkeys(pair.template for pair in pairs):
        mine = [pair for pair in pairs if pair.template == name]
        for batch in group(mine, vocabulary, size=settings.batch_size, device=stack.model.device):
            values += batch.metric(run(stack, batch.clean)).tolist()
        order += mine
    by_template: dict[str, list[float]] = {}
    for pair, value in zip(order, values, strict=True):
        by_template.setdefault(pair.template, []).append(value)
    right = sum(value > 0 for value in values)
    return {
        "accuracy": right / len(values),
        "p_value": sum(math.comb(len(values), k) for k in range(right, len(values) + 1)) / 2 ** len(values),
        "log_odds": sum(values) / len(values),
        "templates": {
            name: {
                "accuracy": sum(value > 0 for value in some) / len(some),
                "clean": sum(some) / len(some),
                "prompts": len(some),
            }
            for name, some in by_template.items()
        },
    }


def measure(
    stack: Stack, tokenizer: Tokenizer, task: Task, seed: int, settings: Settings, bars: Bars = tqdm
) -> dict[str, Any]:
    """Everything about one model, task and seed, as plain data (see `docs/circuits.md` for the keys).

    Raises:
        NotExpressible: the tokenizer cannot express the task.
        NothingToExplain: see `Evaluator`.
    """
    pairs = task.pairs(tokenizer, 2 * settings.prompts, seed)
    vocabulary, device = stack.vocabulary, stack.model.device
    find, test = (
        group(some, vocabulary, size=settings.batch_size, device=device)
        for some in (pairs[: settings.prompts], pairs[settings.prompts :])
    )
    result = behaviour(stack, pairs, settings)
    if result["p_value"] > SIGNIFICANT:
        return result
    edges, nodes = score_edges(stack, find, settings, bars)
    evaluator = Evaluator(stack, test, settings.ablation)
    rankings = Ranking.of_heads(stack, nodes), Ranking.of_edges(stack, edges)
    with bars("measuring circuits", None) as bar:
        heads, of_edges = (curve(ranking, evaluator, settings.shares, bar) for ranking in rankings)
    result |= {"clean": evaluator.clean, "ablated": evaluator.ablated, "seed": seed}
    result |= {"head": _curve(heads), "edge": _curve(of_edges)}
    opened = _open_edges(stack, test)
    result["attention_edges"] = {
        str(share): None if count is None else float(opened[rankings[0].order[:count]].sum())
        for share, count in heads.smallest.items()
    }
    count = of_edges.smallest.get(DRAWN_SHARE)
    result["circuit"] = None if count is None else _circuit(stack, edges, rankings[1].circuit(count))
    result["example"] = _example(stack, tokenizer, pairs[settings.prompts], result["circuit"])
    return result


def _curve(curve: Curve) -> dict[str, Any]:
    data = asdict(curve)
    data["smallest"] = {str(share): count for share, count in curve.smallest.items()}
    of_edges = curve.level == "edge"
    return data | {"cpr": curve.cpr() if of_edges else None, "cmd": curve.cmd() if of_edges else None}


def _circuit(stack: Stack, scores: Tensor, kept: Tensor) -> dict[str, Any]:
    writers, readers = stack.graph.writers, stack.graph.readers
    places = kept.nonzero()
    order = scores[kept].abs().argsort(descending=True)[:DRAWN_EDGES]
    edges = [
        [writers[writer].name, readers[reader].name, float(scores[writer, reader])]
        for writer, reader in places[order].tolist()
    ]
    return {"share": DRAWN_SHARE, "edges": edges, "count": int(kept.sum())}


@torch.no_grad()
def _open_edges(stack: Stack, batches: Sequence[Prompts]) -> Float[Tensor, " writer"]:
    """Open attention edges of every head, per prompt."""
    counts = torch.zeros(len(stack.graph.writers))
    for batch in batches:
        residual = stack.embed(batch.clean)
        for layer, heads in enumerate(stack.graph.heads):
            indices = stack.open_edges(layer, stack.project(layer, residual)).indices
            counts[stack.graph.head_writers(layer)] += indices[1].bincount(minlength=heads).cpu()
            residual = stack.layer(layer, residual)
    return counts / sum(map(len, batches))


@torch.no_grad()
def _example(stack: Stack, tokenizer: Tokenizer, pair: Pair, circuit: dict[str, Any] | None) -> dict[str, Any]:
    """One prompt and the open attention edges, with weights, of the heads in a circuit."""
    wanted = {writer for writer, _, _ in circuit["edges"]} if circuit else set()
    heads: dict[str, list[list[float]]] = {}
    residual = stack.embed(torch.tensor([pair.clean], device=stack.model.device))
    for layer in range(stack.graph.layers):
        indices, weights = stack.open_edges(layer, stack.project(layer, residual))
        residual = stack.layer(layer, residual)
        for (_, head, query, key), weight in zip(indices.T.tolist(), weights.tolist(), strict=True):
            if f"head {layer}.{head}" in wanted:
                heads.setdefault(f"{layer}.{head}", []).append([query, key, round(weight, 4)])
    return {"tokens": [token_text(tokenizer, token) for token in pair.clean], "heads": heads}
