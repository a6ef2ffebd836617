"""The attribution graph of one prompt, as plain arrays without a model."""

from dataclasses import dataclass, field, fields
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float, Int


class Kind(IntEnum):
    """Kinds of nodes."""

    EMBEDDING = 0
    FEATURE = 1
    ERROR = 2
    HEAD = 3
    LOGIT = 4


_Places = Bool[np.ndarray, " row"] | Int[np.ndarray, " kept"] | slice


@dataclass(frozen=True, eq=False)
class NodeTable:
    """Nodes in the order in which the model computes them: the prompt's T embeddings first, the logits last.

    kind: a `Kind`.
    layer: -1 for embeddings, L for logits.
    position: position of the residual stream that the node writes to; for a head, the query's position.
    index: number of the feature or head, token id of an embedding or a logit; 0 for errors.
    value: the sum of incoming edges and bias. It is a feature's activation, a head's attribution to the explained
        logits, or a logit's height over the mean logit (before a soft cap); 0 for embeddings and errors.
    """

    kind: Int[np.ndarray, " node"]
    layer: Int[np.ndarray, " node"]
    position: Int[np.ndarray, " node"]
    index: Int[np.ndarray, " node"]
    value: Float[np.ndarray, " node"]

    def __len__(self) -> int:
        return len(self.kind)

    def stages(self) -> Int[np.ndarray, " node"]:
        """Order in which nodes are computed: an edge's source always has a smaller stage than its target."""
        return stage(self.kind, self.layer)

    def where(self, places: _Places) -> "NodeTable":
        return NodeTable(*(getattr(self, column.name)[places] for column in fields(self)))

    def keys(self) -> list[tuple[int, int, int, int]]:
        """(kind, layer, position, index) of each node, which identifies it in all graphs of the prompt."""
        columns = (self.kind, self.layer, self.position, self.index)
        return list(zip(*(column.tolist() for column in columns), strict=True))


_OFFSET = np.array([0, 2, 3, 1, 1])  # by kind: in a layer heads come first, then features, then the errors


def stage(kind: Int[np.ndarray, "*nodes"], layer: Int[np.ndarray, "*nodes"]) -> Int[np.ndarray, "*nodes"]:
    """Stage in which nodes of a kind and layer are computed (see `NodeTable.stages`)."""
    return np.where(kind == Kind.EMBEDDING, 0, 3 * layer + _OFFSET[kind]).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Edges:
    """Direct effects, ordered by the target's stage. Source and target are indices into the node table. The weights of
    a target's incoming edges and its bias add up to its value."""

    source: Int[np.ndarray, " edge"]
    target: Int[np.ndarray, " edge"]
    weight: Float[np.ndarray, " edge"]

    def __len__(self) -> int:
        return len(self.weight)

    def where(self, places: _Places) -> "Edges":
        return Edges(self.source[places], self.target[places], self.weight[places])


@dataclass
class AttributionGraph:
    """All nodes that can reach the explained logits of one prompt, and their direct effects.

    Attributes:
        ids: token ids of the prompt.
        layers: L.
        nodes: the node table.
        edges: the direct effects.
        bias: for each node, the part of its value that comes from biases, which are not nodes.
        influence: for each node, the share of the logits' influence that flows through it (see `influence`).
        logit_ids: token ids of the explained logits, most probable first; the last nodes of the table.
        probabilities: probabilities of these tokens.
        head_attribution: (L, H, T) the total attribution of each head at each query position: derivative of
            sum_k p_k (logit_k - mean logit) in the head's output, times that output. 0 where all edges are closed.
        attention: per layer (H, T, T), the weight of each key's value in each query's output, 0 at closed edges.
        edge_attribution: per layer (H, T, T), each attention edge's part of its head's attribution; the sum over keys
            is `head_attribution`.
        replacement_error: |error| / |MLP output|, averaged over layers and positions.
        explained_variance: share of the MLP outputs' variance that the transcoder's features explain, averaged over
            layers.
        replacement_kl: KL divergence in nats of the next token from the model's, when the transcoder replaces every
            MLP and nothing is frozen.
        allowed_edges, open_edges: numbers of attention edges over all layers and heads.
        seconds: time to build the graph.
    """

    ids: Int[np.ndarray, " time"]
    layers: int
    nodes: NodeTable
    edges: Edges
    bias: Float[np.ndarray, " node"]
    influence: Float[np.ndarray, " node"]
    logit_ids: Int[np.ndarray, " logit"]
    probabilities: Float[np.ndarray, " logit"]
    head_attribution: Float[np.ndarray, "layer head time"]
    attention: list[Float[np.ndarray, "head query key"]]
    edge_attribution: list[Float[np.ndarray, "head query key"]]
    replacement_error: float
    explained_variance: float
    replacement_kl: float
    allowed_edges: int
    open_edges: int
    seconds: float = field(default=0.0, compare=False)

    @property
    def stages(self) -> Int[np.ndarray, " node"]:
        return self.nodes.stages()
