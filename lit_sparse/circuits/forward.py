"""Forward passes of a circuit, in which writers outside it are replaced by those of another input.

Everything outside the circuit is replaced by what it writes on the corrupted prompt (or on average). A reader receives

    residual - sum over its edges outside the circuit of (what the writer writes now - its replacement).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_sparse.anatomy.calls import Projected
from lit_sparse.anatomy.stack import Stack

Ids = Int[Tensor, "batch time"]
Writers = Float[Tensor, "writer batch time model"]
Logits = Float[Tensor, "batch token"]
Metric = Callable[[Logits], Float[Tensor, " batch"]]


@torch.no_grad()
def activations(stack: Stack, ids: Ids) -> tuple[Writers, Logits]:
    """Outputs of every writer on some prompts (memory: writers x batch x time x model floats), and the logits."""
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
def run(stack: Stack, ids: Ids) -> Logits:
    """Logits of the whole model, without recording activations."""
    residual = stack.embed(ids)
    for layer in range(stack.graph.layers):
        residual = stack.layer(layer, residual)
    return stack.logits(residual)


@torch.no_grad()
def run_edges(stack: Stack, ids: Ids, replacement: Writers, kept: Bool[Tensor, "writer reader"]) -> Logits:
    """Logits with the edges outside `kept` ablated: along these edges, readers receive `replacement`.

    Readers that keep the same edges share their work, and writers that no reader in the circuit reads are not run. So a
    small circuit costs less than one forward pass per reader.
    """
    graph = stack.graph
    changed = torch.zeros_like(replacement)  # what each writer writes beyond its replacement
    changed[0] = stack.embed(ids) - replacement[0]
    ablated = replacement[0]  # the residual stream with every writer replaced
    wanted = kept.any(1).tolist()
    heard = torch.zeros(len(replacement), dtype=torch.bool)  # writers that have changed
    heard[0] = True

    def inputs(rows: Bool[Tensor, "row writer"]) -> Float[Tensor, "row batch time model"]:
        """The ablated stream plus, for each row, the changes of the writers that the row keeps."""
        used = (rows.any(0) & heard).nonzero()[:, 0]
        sums = rows[:, used].to(changed) @ changed[used].flatten(1)
        return ablated + sums.view(len(rows), *ablated.shape)

    for layer in range(graph.layers):
        heads, mlp, before = graph.head_writers(layer), graph.mlp_writer(layer), ablated
        if any(wanted[heads]):
            rows, which = (kept[:, graph.attention_readers(layer)] & heard[:, None]).T.unique(
                dim=0, return_inverse=True
            )
            projected = _project_rows(stack, layer, inputs(rows), which)
            each, attention = stack.write(layer, stack.attend(layer, projected))
            changed[heads] = each - replacement[heads]
            heard[heads] = changed[heads].flatten(1).any(1)
            after = ablated + attention - changed[heads].sum(0)
        else:
            after = ablated + replacement[heads].sum(0) + stack.attention_bias(layer)
        if wanted[mlp]:
            ablated = before if graph.parallel[layer] else after
            changed[mlp] = stack.mlp(layer, inputs(kept[None, :, graph.mlp_reader(layer)])[0]) - replacement[mlp]
            heard[mlp] = True
        ablated = after + replacement[mlp]
    return stack.logits(inputs(kept[None, :, -1])[0])


@torch.no_grad()
def run_nodes(stack: Stack, ids: Ids, replacement: Writers, kept: Bool[Tensor, " writer"]) -> Logits:
    """Logits with every writer outside `kept` replaced for all readers."""
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
    """Queries, keys and values, each head from its own residual stream: reader i reads `rows[which[i]]`."""
    count, batch = rows.shape[:2]
    parts = [part.unflatten(0, (count, batch)) for part in stack.project(layer, rows.flatten(0, 1))]
    heads, kv_heads = parts[0].shape[2], parts[1].shape[2]
    picked = []
    for part, places in zip(parts, which.split([heads, kv_heads, kv_heads]), strict=True):
        picked.append(torch.stack([part[row, :, head] for head, row in enumerate(places.tolist())], dim=1))
    return Projected(*picked)
