"""Vectors that every node has written into the residual stream of its position so far, layer by layer."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_sparse.attribution.graph import Kind, NodeTable, stage
from lit_sparse.attribution.replacement import Replacement


class Writers:
    """All writers that can reach the logits, as rows of one matrix.

    Rows of one position are neighbours, in the order in which they are computed. So the rows that a reader reads are
    neighbours too. The first row of a position is its biases.

    Attributes:
        nodes: the table of the writers, in the order of graphs (`NodeTable`). Values of embeddings, heads and errors
            are still 0.
        rows: for each node, its row in `written`; `node_of_row` is the inverse, -1 for biases.
        written: (rows, D) vectors written so far. `add_attention` and `add_mlp` fill them, one layer after another.
    """

    def __init__(self, replacement: Replacement):
        self.replacement = replacement
        length, self.width = replacement.embedding.shape
        self.nodes = _table(replacement)
        stages = self.nodes.stages()
        order = np.lexsort((np.arange(len(self.nodes)), self.nodes.position))  # nodes are in order of stages already
        rows = np.empty(len(order), dtype=np.int64)
        rows[order] = np.arange(len(order))
        rows += self.nodes.position + 1  # the bias rows
        self.node_of_row = np.full(len(order) + length, -1)
        self.node_of_row[rows] = np.arange(len(order))
        device = replacement.embedding.device
        self.rows: Int[Tensor, " node"] = torch.from_numpy(rows).to(device)
        counts = np.zeros((length, 3 * replacement.layers + 1), dtype=np.int64)
        np.add.at(counts, (self.nodes.position, stages), 1)
        self._counts = counts.cumsum(1) + 1
        self._starts = np.concatenate([[0], self._counts[:, -1].cumsum()[:-1]])
        self._stage_starts = np.searchsorted(stages, np.arange(3 * replacement.layers + 2))
        self.written: Float[Tensor, "row model"] = replacement.embedding.new_zeros(len(self.node_of_row), self.width)
        self.written[self.rows[:length]] = replacement.embedding
        self._biases = torch.from_numpy(self._starts).to(device)

    def nodes_of(self, kind: Kind, layer: int) -> slice:
        """The nodes of one kind in a layer. They are neighbours in the table, ordered by position and index."""
        place = int(stage(np.array(kind), np.array(layer)))
        return slice(int(self._stage_starts[place]), int(self._stage_starts[place + 1]))

    def seen(self, position: int, last_stage: int) -> slice:
        """The rows of a position's writers up to a stage."""
        first = int(self._starts[position])
        return slice(first, first + int(self._counts[position, last_stage]))

    @torch.no_grad()
    def add_attention(self, layer: int) -> None:
        """Adds what a layer's heads and the biases of its attention write."""
        nodes = self.nodes_of(Kind.HEAD, layer)
        heads = self.replacement.heads[layer]
        index, position = self._column(self.nodes.index, nodes), self._column(self.nodes.position, nodes)
        self.written[self.rows[nodes]] = heads[index, position]
        self.written[self._biases] += self.replacement.attention_bias[layer]

    @torch.no_grad()
    def add_mlp(self, layer: int) -> None:
        """Adds what features write to a layer's MLP output, and the MLP's error and bias."""
        replacement = self.replacement
        for source, decoder in enumerate(replacement.decoders[: layer + 1]):
            if layer - source >= decoder.shape[1]:
                continue
            nodes = self.nodes_of(Kind.FEATURE, source)
            index, position = self._column(self.nodes.index, nodes), self._column(self.nodes.position, nodes)
            activation = replacement.activations[source, position, index]
            self.written[self.rows[nodes]] += activation[:, None] * decoder[index, layer - source]
        nodes = self.nodes_of(Kind.ERROR, layer)
        self.written[self.rows[nodes]] = replacement.errors[layer, self._column(self.nodes.position, nodes)]
        self.written[self._biases] += replacement.transcoder.b_dec[layer]

    def _column(self, column: np.ndarray, nodes: slice) -> Int[Tensor, " node"]:
        return torch.from_numpy(column[nodes]).to(self.rows.device, torch.int64)


def _table(replacement: Replacement) -> NodeTable:
    """Nodes whose position can reach the logits after their layer, heads only if they have an open edge."""
    length = len(replacement.embedding)
    parts = [_nodes(Kind.EMBEDDING, -1, np.arange(length), replacement.ids[0].cpu().numpy())]
    for layer in range(replacement.layers):
        seen = replacement.seen[layer + 1]
        is_open = (replacement.weights[layer] != 0).any(-1).T.cpu()  # (query, head)
        position, head = (is_open & seen[:, None]).nonzero(as_tuple=True)
        parts.append(_nodes(Kind.HEAD, layer, position.numpy(), head.numpy()))
        activation = replacement.activations[layer].cpu()
        position, feature = ((activation > 0) & seen[:, None]).nonzero(as_tuple=True)
        value = activation[position, feature].float().numpy()
        parts.append(_nodes(Kind.FEATURE, layer, position.numpy(), feature.numpy(), value))
        position = seen.nonzero()[:, 0]
        parts.append(_nodes(Kind.ERROR, layer, position.numpy(), np.zeros(len(position))))
    return joined(parts)


def joined(parts: list[NodeTable]) -> NodeTable:
    """Tables joined below each other."""
    names = ("kind", "layer", "position", "index", "value")
    return NodeTable(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _nodes(
    kind: Kind, layer: int, position: np.ndarray, index: np.ndarray, value: np.ndarray | None = None
) -> NodeTable:
    count = len(position)
    return NodeTable(
        np.full(count, kind, dtype=np.int8),
        np.full(count, layer, dtype=np.int32),
        position.astype(np.int32),
        index.astype(np.int32),
        np.zeros(count, dtype=np.float32) if value is None else value,
    )
