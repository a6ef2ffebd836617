"""Scores of every head and MLP by exact patching, one at a time, in both directions."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.forward import Ids, Metric, Writers, activations
from lit_sparse.common.progress import Counter

COPIES = 8
"""Writers patched in one pass, each in its own copy of the prompts."""


class NodeEffects(NamedTuple):
    """Changes of the metric, averaged over prompts.

    noising: the corrupted prompt's activation replaces the clean one in the clean run, which tests necessity.
    denoising: the clean prompt's activation replaces the corrupted one in the corrupted run, which tests sufficiency.
    """

    noising: Float[Tensor, " writer"]
    denoising: Float[Tensor, " writer"]


@torch.no_grad()
def patch_nodes(stack: Stack, clean: Ids, corrupted: Ids, metric: Metric, *, bar: Counter | None = None) -> NodeEffects:
    """Activation patching of every writer, from its layer on. Heads that write the same on both prompts, such as those
    whose gates are all closed, have no effect and cost nothing."""
    on_clean, _ = activations(stack, clean)
    difference = activations(stack, corrupted)[0] - on_clean
    noising = _patch(stack, clean, difference, metric, bar)
    denoising = _patch(stack, corrupted, -difference, metric, bar)
    return NodeEffects(noising, denoising)


def _patch(stack: Stack, ids: Tensor, change: Writers, metric: Metric, bar: Counter | None) -> Float[Tensor, " writer"]:
    graph, batch = stack.graph, len(ids)
    effects = torch.zeros(len(graph.writers))

    def finish(layer: int, copies: Tensor, writers: list[int]) -> None:
        """Runs copies of the residual stream, one per writer, from a layer on."""
        for index in range(layer, graph.layers):
            copies = stack.layer(index, copies)
        values = torch.stack([metric(logits).mean() for logits in stack.logits(copies).split(batch)])
        effects[writers] = values.cpu().float()

    def chunks(writers: list[int]) -> list[list[int]]:
        if bar is not None:
            bar.update(len(writers) * batch)
        alive = [writer for writer in writers if change[writer].any()]
        return [alive[first : first + COPIES] for first in range(0, len(alive), COPIES)]

    residual = stack.embed(ids)
    for some in chunks([0]):
        finish(0, residual + change[0], some)
    for layer in range(graph.layers):
        heads = graph.head_writers(layer)
        _, attention = stack.write(layer, stack.attend(layer, stack.project(layer, residual)))
        for some in chunks(list(range(heads.start, heads.stop))):
            patched = (attention + change[some]).flatten(0, 1)
            copies = residual.repeat(len(some), 1, 1)
            finish(layer + 1, stack.finish_layer(layer, copies, patched), some)
        residual = stack.finish_layer(layer, residual, attention)
        for some in chunks([graph.mlp_writer(layer)]):
            finish(layer + 1, residual + change[some[0]], some)
    normal = metric(stack.logits(residual)).mean().cpu().float()
    touched = change.flatten(1).any(1).cpu()
    return torch.where(touched, effects - normal, 0.0)
