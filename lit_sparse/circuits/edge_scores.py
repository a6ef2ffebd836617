"""Scores of every edge: by gradients (EAP, EAP-IG) and by patching each one exactly (the oracle).

A score is the change of the metric when the edge passes the corrupted prompt's activation instead of the clean one's,
averaged over prompts. A positive score means that the edge works against the answer. Ranks use the score's magnitude.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lit_sparse.anatomy.calls import Projected
from lit_sparse.anatomy.component_graph import ComponentGraph
from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.forward import Ids, Metric, Writers, activations
from lit_sparse.common.progress import Counter


def eap(
    stack: Stack,
    clean: Ids,
    corrupted: Ids,
    metric: Metric,
    *,
    interpolations: int = 1,
    bar: Counter | None = None,
) -> Float[Tensor, "writer reader"]:
    """Edge attribution patching, (a_corrupted - a_clean) . d metric / d reader input (Syed et al., arXiv 2310.10348).

    With more than one interpolation, the gradient is the mean over input embeddings between the corrupted and the
    clean prompt's: EAP-IG (inputs) of Hanna et al., arXiv 2403.17806. A single gradient is taken at the clean prompt.

    Args:
        metric: maps logits (B, V) to the quantity (B,) that the scores explain.
        interpolations: number of gradients to average.
        bar: counts the gradients of every prompt.
    """
    written_clean, _ = activations(stack, clean)
    written_corrupted, _ = activations(stack, corrupted)
    difference = written_corrupted - written_clean
    scores = difference.new_zeros(len(stack.graph.writers), len(stack.graph.readers))
    start, end = written_corrupted[0], written_clean[0]
    for step in range(1, interpolations + 1):
        embedding = start + (end - start) * (step / interpolations)
        _add_scores(stack, embedding, difference, metric, scores)
        if bar is not None:
            bar.update(len(clean))
    return scores.cpu() / (interpolations * len(clean))


def _add_scores(stack: Stack, embedding: Tensor, difference: Writers, metric: Metric, scores: Tensor) -> None:
    """Adds the inner products of every writer's difference with every reader's gradient."""
    graph = stack.graph
    flat = difference.flatten(1)
    inputs: list[Tensor] = []
    readers: list[Tensor] = []  # per layer query, key, value and MLP output: where gradients arrive
    with torch.enable_grad():
        residual = embedding.detach().requires_grad_()
        for layer in range(graph.layers):
            projected = stack.project(layer, residual)
            _, attention = stack.write(layer, stack.attend(layer, projected))
            after = residual + attention
            seen = residual if graph.parallel[layer] else after
            mlp = stack.mlp(layer, seen)
            inputs += [residual, seen]
            readers += [*projected, mlp]
            residual = after + mlp
        gradients = torch.autograd.grad(metric(stack.logits(residual)).sum(), [*readers, residual])
    scores[:, -1] += flat @ gradients[-1].flatten()
    inputs, readers = [x.detach() for x in inputs], []
    for layer in range(graph.layers):
        *d_projected, d_mlp = gradients[4 * layer : 4 * layer + 4]
        before, place = graph.head_writers(layer).start, graph.attention_readers(layer)
        each = _reader_gradients(stack, layer, inputs[2 * layer], Projected(*d_projected))
        scores[:before, place] += flat[:before] @ each.flatten(1).T
        writers = graph.writers_before_mlp(layer)
        with torch.enable_grad():
            seen = inputs[2 * layer + 1].requires_grad_()
            (through,) = torch.autograd.grad(stack.mlp(layer, seen), seen, d_mlp)
        scores[:writers, graph.mlp_reader(layer)] += flat[:writers] @ through.flatten()


def _reader_gradients(
    stack: Stack, layer: int, residual: Tensor, gradients: Projected
) -> Float[Tensor, "reader batch time model"]:
    """The metric's gradient in the residual stream as each query, key and value head reads it. It takes one forward
    pass, and a backward pass for each reader, in which only its own gradient arrives."""
    counts = [part.shape[1] for part in gradients]
    readers = torch.eye(sum(counts), dtype=residual.dtype, device=residual.device).split(counts, dim=1)
    arriving = [
        torch.einsum("rh,bhtd->rbhtd", only, gradient) for only, gradient in zip(readers, gradients, strict=True)
    ]
    with torch.enable_grad():
        read = residual.detach().requires_grad_()
        return torch.autograd.grad(tuple(stack.project(layer, read)), read, arriving, is_grads_batched=True)[0]


@torch.no_grad()
def exact(
    stack: Stack, clean: Ids, corrupted: Ids, metric: Metric, *, bar: Counter | None = None
) -> Float[Tensor, "writer reader"]:
    """Scores every edge by patching it alone in the clean run. It takes one forward pass per edge, from the reader's
    layer on, so it suits small models; it is the oracle of the faster methods. Memory: writers x batch x time x model
    floats several times over. `bar` counts forward passes, `exact_passes` for every prompt."""
    graph = stack.graph
    written, logits = activations(stack, clean)
    difference = activations(stack, corrupted)[0] - written
    normal = metric(logits).mean().cpu()
    scores = torch.zeros(len(graph.writers), len(graph.readers), dtype=difference.dtype)
    batch = len(clean)

    def finish(layer: int, residual: Tensor, reader: int) -> None:
        """Runs the copies of the prompts, one per writer, from a layer on; records the change of the metric."""
        for index in range(layer, graph.layers):
            residual = stack.layer(index, residual)
        values = metric_of_copies(stack.logits(residual))
        scores[: len(values), reader] = values - normal
        if bar is not None:
            bar.update(len(values) * batch * _remaining(graph, layer - 1) / graph.layers)

    def metric_of_copies(logits: Tensor) -> Tensor:
        return torch.stack([metric(copy).mean() for copy in logits.split(batch)]).cpu()

    residual = stack.embed(clean)
    for layer in range(graph.layers):
        heads, place = graph.head_writers(layer), graph.attention_readers(layer)
        count = heads.start
        patched = (residual + difference[:count]).flatten(0, 1)
        normally, repeated = stack.project(layer, residual), residual.repeat(count, 1, 1)
        changed = stack.project(layer, patched)
        reader = place.start
        for part in range(3):
            for head in range(normally[part].shape[1]):
                mixed = [x.repeat(count, 1, 1, 1) for x in normally]
                mixed[part][:, head] = changed[part][:, head]
                _, attention = stack.write(layer, stack.attend(layer, Projected(*mixed)))
                finish(layer + 1, stack.finish_layer(layer, repeated, attention), reader)
                reader += 1
        _, attention = stack.write(layer, stack.attend(layer, normally))
        after = residual + attention
        count = graph.writers_before_mlp(layer)
        seen = residual if graph.parallel[layer] else after
        mlp = stack.mlp(layer, (seen + difference[:count]).flatten(0, 1))
        finish(layer + 1, after.repeat(count, 1, 1) + mlp, graph.mlp_reader(layer))
        residual = after + stack.mlp(layer, seen)
    finish(graph.layers, (residual + difference).flatten(0, 1), len(graph.readers) - 1)
    return scores


def exact_passes(graph: ComponentGraph) -> float:
    """Number of forward passes per prompt that `exact` takes, where an edge's pass begins at its reader's layer."""
    each = torch.tensor([_remaining(graph, reader.layer) for reader in graph.readers])
    return float((graph.edges.sum(0) * each).sum()) / graph.layers


def _remaining(graph: ComponentGraph, layer: int) -> int:
    """Number of layers from `layer` on. The part after the last layer counts as one."""
    return max(1, graph.layers - layer)
