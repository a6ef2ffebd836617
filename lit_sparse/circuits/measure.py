"""Measurement of one model on one task: its accuracy, its important components, and its smallest circuits."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.stats import binomtest
from torch import Tensor

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.edge_scores import eap, exact
from lit_sparse.circuits.faithfulness import Curve, Evaluator, Ranking, curve, most_evaluations
from lit_sparse.circuits.forward import run
from lit_sparse.circuits.node_scores import patch_nodes
from lit_sparse.circuits.prompts import Prompts, group
from lit_sparse.circuits.settings import Settings
from lit_sparse.circuits.tasks import Pair, Task, Tokenizer
from lit_sparse.circuits.work import ACCURACY, EDGES, HEADS, SCORES, scoring_passes, shares
from lit_sparse.common.progress import Counter, Stage
from lit_sparse.models.tokens import token_text
from lit_sparse.records.circuits import Behaviour, Circuit, CircuitEdge, CircuitExample, Shape, SizeCurve, TaskRun

DRAWN_SHARE = 0.9
"""Share of the behaviour that the drawn circuit keeps."""

DRAWN_EDGES = 2000
"""Largest number of that circuit's edges that are recorded, strongest first."""

SIGNIFICANT = 0.01
"""A model cannot do the task if guessing reaches its accuracy with a probability above this."""


Advance = Callable[[str, float], object]
"""Function called with the present stage and the share of the work, 0 to 1, that is done."""


def score_edges(
    stack: Stack, batches: Sequence[Prompts], settings: Settings, bar: Counter | None = None
) -> tuple[Float[Tensor, "writer reader"], Float[Tensor, " writer"]]:
    """Scores of edges and of writers, averaged over prompts. With gradients, a writer's score is the sum of its edges'
    scores, since both are first-order effects of the same change. `bar` counts to `scoring_passes` for every prompt."""
    number = sum(map(len, batches))
    edges, nodes = torch.zeros(stack.graph.edges.shape), torch.zeros(len(stack.graph.writers))
    steps = settings.interpolations if settings.method == "eap-ig" else 1
    for batch in batches:
        weight = len(batch) / number
        if settings.method == "exact":
            edges += weight * exact(stack, batch.clean, batch.corrupted, batch.metric, bar=bar).float()
            nodes += weight * patch_nodes(stack, batch.clean, batch.corrupted, batch.metric, bar=bar).noising
        else:
            found = eap(stack, batch.clean, batch.corrupted, batch.metric, interpolations=steps, bar=bar).float()
            edges, nodes = edges + weight * found, nodes + weight * found.sum(1)
    return edges, nodes


class NotDone(ValueError):
    """A model that does a task no better than by guessing."""


class Scores(NamedTuple):
    """Log-odds of right against wrong answers on some prompts, together and by template."""

    all: list[float]
    templates: dict[str, list[float]]

    @property
    def p_value(self) -> float:
        """Probability of as many right answers by guessing (one-sided binomial test)."""
        return float(binomtest(_right(self.all), len(self.all), alternative="greater").pvalue)


def score_prompts(stack: Stack, pairs: Sequence[Pair], settings: Settings) -> Scores:
    """Scores of the model on the clean prompts."""
    templates: dict[str, list[float]] = {}
    for name in dict.fromkeys(pair.template for pair in pairs):
        mine = [pair for pair in pairs if pair.template == name]
        batches = group(mine, stack.vocabulary, size=settings.batch_size, device=stack.model.device)
        templates[name] = [value for batch in batches for value in batch.metric(run(stack, batch.clean)).tolist()]
    return Scores([value for some in templates.values() for value in some], templates)


def measure(
    stack: Stack,
    tokenizer: Tokenizer,
    task: Task,
    seed: int,
    settings: Settings,
    advance: Advance = lambda what, done: None,
) -> TaskRun:
    """Measures one model on one task with one seed.

    Args:
        advance: called as the work proceeds.

    Raises:
        NotExpressible: the tokenizer cannot express the task.
        NotDone: the model's accuracy is no better than chance.
        NothingToExplain: see `Evaluator`.
    """
    advance(ACCURACY, 0.0)
    pairs = task.pairs(tokenizer, 2 * settings.prompts, seed)
    vocabulary, device = stack.vocabulary, stack.model.device
    find, test = (
        group(some, vocabulary, size=settings.batch_size, device=device)
        for some in (pairs[: settings.prompts], pairs[settings.prompts :])
    )
    scores = score_prompts(stack, pairs, settings)
    accuracy = _right(scores.all) / len(scores.all)
    if scores.p_value > SIGNIFICANT:
        raise NotDone(f"accuracy {accuracy:.0%} is no better than chance (p = {scores.p_value:.2g})")
    share = shares(stack.graph, settings)
    scoring = scoring_passes(stack.graph, settings) * settings.prompts
    edges, nodes = score_edges(stack, find, settings, Stage(advance, SCORES, scoring, end=share[SCORES]))
    evaluator = Evaluator(stack, test, settings.ablation)
    of_heads, of_edges = Ranking.of_heads(stack, nodes), Ranking.of_edges(stack, edges)
    before_edges = share[SCORES] + share[HEADS]
    heads, edge_curve = (
        curve(
            ranking,
            evaluator,
            settings.shares,
            Stage(advance, what, most_evaluations(ranking.sizes(), settings.shares), start=start, end=end),
        )
        for ranking, what, start, end in (
            (of_heads, HEADS, share[SCORES], before_edges),
            (of_edges, EDGES, before_edges, 1.0),
        )
    )
    opened = _open_edges(stack, test)
    count = edge_curve.smallest.get(DRAWN_SHARE)
    circuit = None if count is None else _circuit(stack, edges, of_edges.circuit(count))
    graph = stack.graph
    return TaskRun(
        seed=seed,
        shape=Shape(layers=graph.layers, heads_per_layer=max(graph.heads), kv_heads_per_layer=max(graph.kv_heads)),
        accuracy=accuracy,
        p_value=scores.p_value,
        clean=evaluator.clean,
        ablated=evaluator.ablated,
        templates={
            name: Behaviour(accuracy=_right(some) / len(some), clean=fmean(some), prompts=len(some))
            for name, some in scores.templates.items()
        },
        head=_recorded(heads),
        edge=_recorded(edge_curve),
        attention_edges={
            share: None if count is None else float(opened[of_heads.order[:count]].sum())
            for share, count in heads.smallest.items()
        },
        circuit=circuit,
        example=_example(stack, tokenizer, pairs[settings.prompts], circuit),
    )


def _right(values: Sequence[float]) -> int:
    return sum(value > 0 for value in values)


def _recorded(curve: Curve) -> SizeCurve:
    of_edges = curve.level == "edge"
    return SizeCurve(
        total=curve.total,
        sizes=curve.sizes,
        values=curve.values,
        smallest=curve.smallest,
        cpr=curve.cpr() if of_edges else None,
        cmd=curve.cmd() if of_edges else None,
    )


def _circuit(stack: Stack, scores: Tensor, kept: Tensor) -> Circuit:
    writers, readers = stack.graph.writers, stack.graph.readers
    places = kept.nonzero()
    order = scores[kept].abs().argsort(descending=True)[:DRAWN_EDGES]
    edges = [
        CircuitEdge(writers[writer].name, readers[reader].name, float(scores[writer, reader]))
        for writer, reader in places[order].tolist()
    ]
    return Circuit(share=DRAWN_SHARE, edges=edges, count=int(kept.sum()))


@torch.no_grad()
def _open_edges(stack: Stack, batches: Sequence[Prompts]) -> Float[Tensor, " writer"]:
    """Mean number of open attention edges per prompt, for every head."""
    counts = torch.zeros(len(stack.graph.writers))
    for batch in batches:
        residual = stack.embed(batch.clean)
        for layer, heads in enumerate(stack.graph.heads):
            indices = stack.open_edges(layer, stack.project(layer, residual)).indices
            counts[stack.graph.head_writers(layer)] += indices[1].bincount(minlength=heads).cpu()
            residual = stack.layer(layer, residual)
    return counts / sum(map(len, batches))


@torch.no_grad()
def _example(stack: Stack, tokenizer: Tokenizer, pair: Pair, circuit: Circuit | None) -> CircuitExample:
    """One prompt and the open attention edges, with weights, of the heads in a circuit."""
    wanted = {edge.writer for edge in circuit.edges} if circuit else set()
    heads: dict[str, list[tuple[int, int, float]]] = {}
    residual = stack.embed(torch.tensor([pair.clean], device=stack.model.device))
    for layer in range(stack.graph.layers):
        indices, weights = stack.open_edges(layer, stack.project(layer, residual))
        residual = stack.layer(layer, residual)
        for (_, head, query, key), weight in zip(indices.T.tolist(), weights.tolist(), strict=True):
            if f"head {layer}.{head}" in wanted:
                heads.setdefault(f"{layer}.{head}", []).append((query, key, round(weight, 4)))
    return CircuitExample(tokens=[token_text(tokenizer, token) for token in pair.clean], heads=heads)
