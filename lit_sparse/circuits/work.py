"""Work and time that the circuits of a task take, estimated before it is done."""

import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from lit_sparse.anatomy.component_graph import ComponentGraph
from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.edge_scores import eap, exact_passes
from lit_sparse.circuits.faithfulness import Ranking, most_evaluations, sizes
from lit_sparse.circuits.forward import activations, run, run_edges
from lit_sparse.circuits.prompts import Prompts
from lit_sparse.circuits.settings import Settings

T = TypeVar("T")

ACCURACY, SCORES, HEADS, EDGES = "accuracy", "scoring edges", "circuits of heads", "circuits of edges"
"""The stages of `measure`. The work of the first is counted with the second."""

_OTHERS = 8
"""Forward passes per prompt that belong to no curve and no gradient: accuracy, activations, ablation, open edges."""
_USUAL = 50
"""A circuit of one in so many edges takes about as long as the average circuit of a curve."""


class Passes(NamedTuple):
    """Number of passes of each kind, or time of one pass of each kind.

    forward: plain passes, or passes with some nodes replaced.
    gradient: forward passes followed by backward passes to every reader.
    edges: forward passes with some edges ablated.
    """

    forward: float = 0.0
    gradient: float = 0.0
    edges: float = 0.0

    def time(self, each: "Passes") -> float:
        """Time of these passes, if one of each kind takes the time `each`."""
        return sum(number * one for number, one in zip(self, each, strict=True))


TYPICAL = Passes(forward=1.0, gradient=5.5, edges=1.5)
"""Time of a pass of each kind, in forward passes, for SmolLM2-135M on a CPU."""


def scoring_passes(graph: ComponentGraph, settings: Settings) -> float:
    """Number of passes per prompt that scores take: forward passes for exact patches of edges and of nodes (in both
    directions), else gradients."""
    if settings.method == "exact":
        return exact_passes(graph) + 2 * len(graph.writers)
    return settings.interpolations if settings.method == "eap-ig" else 1


def passes(graph: ComponentGraph, settings: Settings) -> dict[str, Passes]:
    """Largest number of passes in each stage, for a prompt that finds circuits and one that measures them together."""
    scoring = scoring_passes(graph, settings)
    heads, edges = int(graph.is_head.sum()), int(graph.edges.sum())
    return {
        SCORES: Passes(forward=_OTHERS + scoring) if settings.method == "exact" else Passes(_OTHERS, scoring),
        HEADS: Passes(forward=most_evaluations(sizes("head", heads, heads), settings.shares)),
        EDGES: Passes(edges=most_evaluations(sizes("edge", edges, edges), settings.shares)),
    }


def shares(graph: ComponentGraph, settings: Settings) -> dict[str, float]:
    """Approximate share of the work in each stage."""
    times = {stage: some.time(TYPICAL) for stage, some in passes(graph, settings).items()}
    return {stage: time / sum(times.values()) for stage, time in times.items()}


def estimated_seconds(graph: ComponentGraph, settings: Settings, tokens: float, each: Passes) -> float:
    """Approximate seconds that a model takes for a task and a seed.

    Args:
        tokens: number of tokens in all prompts that circuits are found on. Those that measure them have about as many.
        each: seconds of a pass per token, from `time_passes`.
    """
    return tokens * sum(some.time(each) for some in passes(graph, settings).values())


def time_passes(stack: Stack, batch: Prompts) -> Passes:
    """Seconds per token of each kind of pass over a batch."""

    def timed(work: Callable[[], T]) -> tuple[float, T]:
        started = time.perf_counter()
        result = work()
        return (time.perf_counter() - started) / batch.clean.numel(), result

    replacement, _ = activations(stack, batch.corrupted)  # the first pass is slower
    forward, _ = timed(lambda: batch.metric(run(stack, batch.clean)).tolist())
    scoring, scores = timed(lambda: eap(stack, batch.clean, batch.corrupted, batch.metric))
    ranking = Ranking.of_edges(stack, scores)
    kept = ranking.circuit(max(1, ranking.total // _USUAL))
    edges, _ = timed(lambda: batch.metric(run_edges(stack, batch.clean, replacement, kept)).tolist())
    return Passes(forward, max(scoring - 2 * forward, forward), edges)
