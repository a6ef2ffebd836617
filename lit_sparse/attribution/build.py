"""Attribution graph of a prompt: every direct effect of a writer on a reader, exactly.

With norms and attention weights frozen, a reader is linear in the residual stream of the positions that it reads:

    feature    encoder row, through the norm before its MLP, at its own position
    head       its node's scalar is u = g . o, with o its output and g the total derivative of the explained logits
               in o. At every key position s with an open edge it reads w_s x (g through the output and value
               projections), through the norm before the attention; closed edges are never visited
    logit      unembedding row minus the mean row, through the final norm, at the last position

So an edge's weight is the product of the reader and the vector that the source wrote. The sum of a target's incoming
edges and its bias is its value, up to rounding.
"""

import time
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from lit_sparse.anatomy.linear import LinearStack
from lit_sparse.attribution.derivative import (
    Derivatives,
    Explained,
    explained_logits,
    total_derivatives,
    unembedding_rows,
)
from lit_sparse.attribution.graph import AttributionGraph, Edges, Kind, NodeTable
from lit_sparse.attribution.influence import node_influence
from lit_sparse.attribution.replacement import Replacement
from lit_sparse.attribution.writers import Writers, joined
from lit_sparse.transcoders import Transcoder


class _Block(NamedTuple):
    """Effects of neighbouring rows on some targets; the first row is the biases."""

    rows: slice
    targets: Int[np.ndarray, " target"]
    effects: Float[Tensor, "row target"]


def build_graph(
    model: PreTrainedModel,
    transcoder: Transcoder,
    ids: Int[Tensor, "1 time"],
    *,
    answer_id: int | None = None,
) -> AttributionGraph:
    """The graph of the token after a prompt, for a dense or sparse model, which is left unchanged.

    Memory: 12 bytes per edge. A feature has an edge from every earlier node of its position, a head from every earlier
    node of each position that it attends to.

    Args:
        transcoder: a transcoder of this model's MLPs. It is moved to the model's device and dtype.
        answer_id: the token whose logit is explained; default the likeliest tokens, up to ten, that cover 95 %.

    Raises:
        ValueError: see `Replacement` and `Stack`; or the answer is outside the vocabulary.
    """
    started = time.perf_counter()
    with LinearStack(model) as stack:
        replacement = Replacement(stack, transcoder, ids.to(model.device))
        explained = explained_logits(replacement.logits, answer_id)
        graph = graph_of(replacement, explained)
    graph.seconds = time.perf_counter() - started
    return graph


@torch.no_grad()
def graph_of(replacement: Replacement, explained: Explained) -> AttributionGraph:
    """The graph of a prompt that has already been run."""
    derivatives = total_derivatives(replacement, explained)
    attribution = head_attribution(replacement, derivatives)
    writers = Writers(replacement)
    length, layers, first_logit = len(replacement.embedding), replacement.layers, len(writers.nodes)
    edges: list[Edges] = []
    bias = np.zeros(first_logit + len(explained.ids), dtype=np.float64)

    def add(block: _Block) -> None:
        effects = block.effects.float().cpu().numpy()
        bias[block.targets] += block.effects[0].double().cpu().numpy()
        source = writers.node_of_row[block.rows][1:].astype(np.int32)
        edges.append(
            Edges(
                np.tile(source, len(block.targets)),
                np.repeat(block.targets.astype(np.int32), len(source)),
                effects[1:].T.ravel(),
            )
        )

    for layer in range(layers):
        for position in range(length):
            if (block := _into_heads(writers, layer, position, derivatives)) is not None:
                add(block)
        if not replacement.parallel[layer]:
            writers.add_attention(layer)
        for position in replacement.seen[layer + 1].nonzero()[:, 0].tolist():
            if (block := _into_features(writers, layer, position)) is not None:
                add(block)
        if replacement.parallel[layer]:  # its MLP does not read its attention, not even the bias
            writers.add_attention(layer)
        writers.add_mlp(layer)
    block, height = _into_logits(writers, explained, first_logit)
    add(block)

    nodes = writers.nodes
    is_head = nodes.kind == Kind.HEAD
    nodes.value[is_head] = attribution[nodes.layer[is_head], nodes.index[is_head], nodes.position[is_head]]
    nodes = joined([nodes, _logit_nodes(explained, layers, length, height)])
    everything = _concatenated(edges)
    probabilities = explained.probabilities.float().cpu().numpy()
    return AttributionGraph(
        ids=replacement.ids[0].cpu().numpy(),
        layers=layers,
        nodes=nodes,
        edges=everything,
        bias=bias.astype(np.float32),
        influence=node_influence(nodes, everything, probabilities),
        logit_ids=explained.ids.cpu().numpy(),
        probabilities=probabilities,
        head_attribution=attribution,
        attention=[weight.float().cpu().numpy() for weight in replacement.weights],
        edge_attribution=edge_attribution(replacement, derivatives),
        replacement_error=replacement.replacement_error,
        explained_variance=replacement.explained_variance,
        replacement_kl=replacement.replacement_kl(),
        allowed_edges=replacement.allowed_edges,
        open_edges=replacement.open_edges,
    )


def head_attribution(replacement: Replacement, derivatives: Derivatives) -> Float[np.ndarray, "layer head time"]:
    """u = g . o for every head and query position. Layers with fewer heads than others are padded with zeros."""
    most, length = max(len(heads) for heads in replacement.heads), len(replacement.embedding)
    attribution = np.zeros((replacement.layers, most, length), dtype=np.float32)
    for layer, (heads, gradient) in enumerate(zip(replacement.heads, derivatives.attention, strict=True)):
        attribution[layer, : len(heads)] = torch.einsum("htd,td->ht", heads, gradient).float().cpu().numpy()
    return attribution


def edge_attribution(replacement: Replacement, derivatives: Derivatives) -> list[Float[np.ndarray, "head query key"]]:
    """Attribution of every attention edge: w_ts x (its value from s, through the output projection) . g at t."""
    layers = zip(replacement.weights, replacement.carried, derivatives.outputs, strict=True)
    return [
        (weight * torch.einsum("thv,hsv->hts", output, carried)).float().cpu().numpy()
        for weight, carried, output in layers
    ]


def _into_heads(writers: Writers, layer: int, position: int, derivatives: Derivatives) -> _Block | None:
    """Effects of the writers at a key position on the heads that attend to it."""
    replacement = writers.replacement
    nodes = writers.nodes_of(Kind.HEAD, layer)
    device = writers.rows.device
    head = torch.from_numpy(writers.nodes.index[nodes]).to(device, torch.int64)
    query = torch.from_numpy(writers.nodes.position[nodes]).to(device, torch.int64)
    factor = replacement.weights[layer][head, query, position]
    attending = factor.nonzero()[:, 0]
    if len(attending) == 0:
        return None
    head, query, factor = head[attending], query[attending], factor[attending]
    output = derivatives.outputs[layer][query, head]  # (target, value)
    weight, value_bias = replacement.values[layer]
    reader = torch.zeros(len(head), writers.width, dtype=output.dtype, device=device)
    for each in head.unique().tolist():
        of_it = head == each
        reader[of_it] = output[of_it] @ weight[each]
    norm = replacement.attention_norms[layer]
    rows = writers.seen(position, 3 * layer)
    effects = norm.linear(writers.written[rows], norm.scale[position, None]) @ reader.T
    effects[0] += reader @ norm.bias + (output * value_bias[head]).sum(-1)
    return _Block(rows, nodes.start + attending.cpu().numpy(), effects * factor)


def _into_features(writers: Writers, layer: int, position: int) -> _Block | None:
    """Effects of the writers at a position on the active features of a layer there."""
    replacement, transcoder = writers.replacement, writers.replacement.transcoder
    nodes = writers.nodes_of(Kind.FEATURE, layer)
    targets = nodes.start + np.flatnonzero(writers.nodes.position[nodes] == position)
    if len(targets) == 0:
        return None
    feature = torch.from_numpy(writers.nodes.index[targets]).to(writers.rows.device, torch.int64)
    reader = transcoder.W_enc[layer][feature]
    norm = replacement.mlp_norms[layer]
    rows = writers.seen(position, 3 * layer if replacement.parallel[layer] else 3 * layer + 1)
    effects = norm.linear(writers.written[rows], norm.scale[position, None]) @ reader.T
    effects[0] += reader @ norm.bias + transcoder.b_enc[layer][feature]
    return _Block(rows, targets, effects)


def _into_logits(writers: Writers, explained: Explained, first_logit: int) -> tuple[_Block, Float[Tensor, " logit"]]:
    """Effects of the writers at the last position on the logits, and the logits' height over the mean logit."""
    replacement = writers.replacement
    reader = unembedding_rows(replacement, explained.ids)
    norm = replacement.final_norm
    rows = writers.seen(len(replacement.embedding) - 1, 3 * replacement.layers)
    effects = norm.linear(writers.written[rows], norm.scale) @ reader.T
    effects[0] += reader @ norm.bias
    if (bias := replacement.vocabulary[1]) is not None:
        effects[0] += bias[explained.ids] - bias.mean()
    return _Block(rows, first_logit + np.arange(len(reader)), effects), effects.sum(0)


def _logit_nodes(explained: Explained, layers: int, length: int, height: Float[Tensor, " logit"]) -> NodeTable:
    count = len(explained.ids)
    return NodeTable(
        np.full(count, Kind.LOGIT, dtype=np.int8),
        np.full(count, layers, dtype=np.int32),
        np.full(count, length - 1, dtype=np.int32),
        explained.ids.cpu().numpy().astype(np.int32),
        height.float().cpu().numpy(),
    )


def _concatenated(parts: list[Edges]) -> Edges:
    return Edges(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("source", "target", "weight")))
