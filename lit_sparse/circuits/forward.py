"""Forward passes of a model whose writers are partly replaced by those of another input: the circuit's own passes.

What lies outside the circuit is ablated by what it would have written on the corrupted prompt (or on average): a
reader receives

    residual - sum over its edges outside the circuit of (what the writer writes now - its replacement).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_sparse.circuits.stack import Projected, Stack

Writers = Float[Tensor, "writer batch time model"]
Metric = Callable[[Float[Tensor, "batch token"]], Float[Tensor, " batch"]]


@torch.no_grad()
def activations(stack: Stack, ids: Int[Tensor, "batch time"]) -> tuple[Writers, Float[Tensor, "batch token"]]:
    """What every writer writes on some prompts (memory: writers x batch x time x model floats), and the logits."""
    residual = stack.embed(ids)
    written = residual.new_empty(len(stack.graph.writers), *residual.shape)
    written[0] = residual
    for layer in range(stack.graph.layers):
        each, attention = stack.write(layer, stack.attend(layer, stack.project(layer, residual)))
        written[stack.graph.head_writers(layer)] = each
        before, residual = residual, residual + attention
        mlp = stack.mlp(layer, before if stack.graph.parallel[layer] else residual)
        written[stack.graph.mlp_writer(layer)] = mlp
        residual = residual + mlp
    return written, stack.logits(residual)


@torch.no_grad()
def run_edges(
    stack: Stack,
    ids: Int[Tensor, "batch time"],
    replacement: Writers,
    kept: Bool[Tensor, "writer reader"],
) -> Float[Tensor, "batch token"]:
    """Logits with the edges outside `kept` ablated: along them, readers receive `replacement`.

    Readers with the same edges kept share their work, so a small circuit is cheaper than a forward pass a reader.
    """
    graph = stack.graph
    residual = stack.embed(ids)
    changed = torch.zeros_like(replacement)  # what each writer writes beyond its replacement
    changed[0] = residual - replacement[0]
    flat = changed.flatten(1)
    alive = torch.zeros(len(replacement), dtype=torch.bool)
    alive[0] = True

    def inputs(rows: Bool[Tensor, "row writer"], writers: int, base: Tensor) -> Float[Tensor, "row batch time model"]:
        """The base and, for each row, the kept writers' changes."""
        used = rows[:, :writers].any(0).nonzero()[:, 0]
        sums = rows[:, used].to(flat) @ flat[used]
        return base + sums.view(len(rows), *base.shape)

    for layer in range(graph.layers):
        heads, readers = graph.head_writers(layer), graph.attention_readers(layer)
        ablated = residual - changed[: heads.start].sum(0)
        rows, which = (kept[:, readers] & alive[:, None]).T.unique(dim=0, return_inverse=True)
        projected = _project_rows(stack, layer, inputs(rows, heads.start, ablated), which)
        each, attention = stack.write(layer, stack.attend(layer, projected))
        changed[heads] = each - replacement[heads]
        alive[heads] = changed[heads].flatten(1).any(1)
        after = residual + attention
        before_mlp = graph.writers_before_mlp(layer)
        seen = residual if graph.parallel[layer] else after
        row = (kept[:, graph.mlp_reader(layer)] & alive)[None]
        mlp = stack.mlp(layer, inputs(row, before_mlp, seen - changed[:before_mlp].sum(0))[0])
        changed[graph.mlp_writer(layer)] = mlp - replacement[graph.mlp_writer(layer)]
        alive[graph.mlp_writer(layer)] = True
        residual = after + mlp
    row = (kept[:, -1] & alive)[None]
    return stack.logits(inputs(row, len(alive), residual - changed.sum(0))[0])


@torch.no_grad()
def run_nodes(
    stack: Stack,
    ids: Int[Tensor, "batch time"],
    replacement: Writers,
    kept: Bool[Tensor, " writer"],
) -> Float[Tensor, "batch token"]:
    """Logits with every writer outside `kept` replaced, for all readers."""
    graph = stack.graph
    residual = stack.embed(ids) if kept[0] else replacement[0]
    for layer in range(graph.layers):
        heads = graph.head_writers(layer)
        each, attention = stack.write(layer, stack.attend(layer, stack.project(layer, residual)))
        gone = ~kept[heads]
        after = residual + attention + (replacement[heads][gone] - each[gone]).sum(0)
        mlp = graph.mlp_writer(layer)
        if kept[mlp]:
            residual = after + stack.mlp(layer, residual if graph.parallel[layer] else after)
        else:
            residual = after + replacement[mlp]
    return stack.logits(residual)


def _project_rows(
    stack: Stack, layer: int, rows: Float[Tensor, "row batch time model"], which: Int[Tensor, " reader"]
) -> Projected:
    """Each query, key and value head from its own residual stream: reader i reads `rows[which[i]]`."""
    count, batch = rows.shape[:2]
    parts = [part.unflatten(0, (count, batch)) for part in stack.project(layer, rows.flatten(0, 1))]
    heads, kv_heads = parts[0].shape[2], parts[1].shape[2]
    picked = []
    for part, places in zip(parts, which.split([heads, kv_heads, kv_heads]), strict=True):
        picked.append(torch.stack([part[row, :, head] for head, row in enumerate(places.tolist())], dim=1))
    return Projected(*picked)
