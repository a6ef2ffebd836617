"""graph.json: one prompt's attribution graph, in the schema that public graph viewers read.

Field names, types and the forms of ids are those of attribution graphs as first published (transformer-circuits.pub
2025, "Circuit Tracing") and read by circuit-tracer and Neuronpedia. Heads are nodes of type "lorsa" with
`qk_tracing_results`, the form in which these viewers know sparse attention. Two things are different:

- An error node is "{layer}_error_{position}". The usual "0_{layer}_{position}" is also the id of a feature of layer 0.
- Some optional fields are ours, and other viewers ignore them: `Metadata.summary`, `Node.own_influence`, `attention`,
  `head_share` and `qk_note`, and the gate's fields of `QKTracing`.

`influence` is cumulative, since viewers prune by `influence <= threshold`. It is the share of all influence on the
logits that this node and the more influential ones of the whole graph have together (`graph_nodes.cumulative`). In a
pruned graph, it is at most `Metadata.node_threshold` for features, heads and errors. `own_influence` is the node's own
share.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from lit_sparse.common.files import write_atomically
from lit_sparse.records.graph_summary import GraphSummary
from lit_sparse.records.reading import Finite, Text
from lit_sparse.records.shown import Shown

SCHEMA_VERSION = 1
FEATURE, ERROR, TOKEN, LOGIT, HEAD = (
    "cross layer transcoder", "mlp reconstruction error", "embedding", "logit", "lorsa",
)  # fmt: skip


class _Part(BaseModel):
    """Base of the file's parts. Unknown fields of other writers are ignored; assignments are not checked again."""

    model_config = ConfigDict(extra="ignore")


class Metadata(_Part):
    """Metadata of a graph. `scan` names the transcoders, `slug` names the graph in a list of graphs."""

    slug: str
    scan: str
    transcoder_list: list[str] = []
    prompt_tokens: list[Text]
    prompt: Text
    node_threshold: Finite | None = None
    schema_version: int = SCHEMA_VERSION
    summary: GraphSummary | None = None


class QParams(_Part):
    """Nodes that a viewer's user pinned and grouped. `supernodes` are lists of a name and the ids of its nodes."""

    pinnedIds: list[str] = []
    supernodes: list[list[Text]] = []
    linkType: str = "both"
    clickedId: str = ""
    sg_pos: str = ""

    @model_validator(mode="before")
    @classmethod
    def _as_saved(cls, content: Any) -> Any:
        """What circuit-tracer's viewer saves: lists as text, and null for what was not set."""
        if not isinstance(content, dict):
            return content
        given = {name: value for name, value in content.items() if value is not None}
        if isinstance(pinned := given.get("pinnedIds"), str):
            given["pinnedIds"] = pinned.split(",") if pinned else []
        if isinstance(groups := given.get("supernodes"), str):
            given["supernodes"] = json.loads(groups or "[]")
        return given


class QKTracing(_Part):
    """Reason why one of a head's edges is open: contributions of writers at the query and key to its attention logit.

    Contributors are (query-side node, key-side node, value) and (node, value), in units of the scaled attention logit,
    the strongest first. Ids may belong to nodes that pruning removed from the graph.

    key: position of the edge's key; the query is the node's own position.
    attention_logit: scaled q.k, the sum over all pairs plus `remainder` (biases, and writers that are not listed).
    gate_logit, gate_cutoff, gate_sharpness: gate_logit = sharpness x (score - cutoff). The edge is open if it is > 0.
    """

    key: int | None = None
    attention_logit: Finite | None = None
    remainder: Finite | None = None
    gate_logit: Finite | None = None
    gate_cutoff: Finite | None = None
    gate_sharpness: Finite | None = None
    pair_wise_contributors: list[tuple[str, str, Finite]] = []
    top_q_marginal_contributors: list[tuple[str, Finite]] = []
    top_k_marginal_contributors: list[tuple[str, Finite]] = []


class Node(_Part):
    """A node. The functions of `graph_nodes`, which know the forms of ids, make nodes."""

    node_id: str
    feature: int
    layer: str
    ctx_idx: int
    feature_type: str
    token_prob: Finite = 0.0
    is_target_logit: bool = False
    run_idx: int = 0
    reverse_ctx_idx: int = 0
    influence: Finite | None = None
    activation: Finite | None = None
    jsNodeId: str
    clerp: Text = ""
    qk_tracing_results: QKTracing | None = None
    own_influence: Finite | None = None
    attention: list[tuple[int, Finite]] | None = None
    """For a head: (key position, attention weight) of its open edges from this position."""
    head_share: Finite | None = None
    """For a head: its share of the attribution of all heads, over all positions."""
    qk_note: str | None = None
    """For a head without `qk_tracing_results`: the reason why there are none."""


class Link(_Part):
    """Addition of `source` to `target`, in the target's units."""

    source: str
    target: str
    weight: Finite


class GraphFile(Shown, _Part):
    """Content of graph.json.

    Raises:
        ValueError: an id occurs twice, a link, pin or supernode names an unknown node, a position is outside the
            prompt, or a number is not finite.
    """

    metadata: Metadata
    qParams: QParams = QParams()
    nodes: list[Node]
    links: list[Link]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ids = {node.node_id for node in self.nodes}
        if len(ids) < len(self.nodes):
            twice, _ = Counter(node.node_id for node in self.nodes).most_common(1)[0]
            raise ValueError(f"node_id {twice!r} occurs more than once")
        size = len(self.metadata.prompt_tokens)
        for node in self.nodes:
            if not 0 <= node.ctx_idx < size:
                raise ValueError(f"node {node.node_id!r} is at position {node.ctx_idx} of a prompt of {size} tokens")
        named = [end for link in self.links for end in (link.source, link.target)]
        named += self.qParams.pinnedIds + [node for group in self.qParams.supernodes for node in group[1:]]
        if (unknown := next((one for one in named if one not in ids), None)) is not None:
            raise ValueError(f"{unknown!r} is no node of the graph, but a link, a pin or a supernode names it")
        return self

    def __repr__(self) -> str:
        size = f"{len(self.nodes):,} nodes, {len(self.links):,} links"
        return f"<GraphFile: {self.metadata.prompt!r}, {size}>"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a graph.json, ours or another tool's.

        Raises:
            ValueError: there is no such file, or it is not a valid graph.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"no graph at {path}: the command `graph` writes it")
        return cls.model_validate_json(path.read_bytes())

    def as_json(self) -> dict[str, Any]:
        """The file's content, without those of our own optional fields that are empty."""
        content = self.model_dump(mode="json")
        if self.metadata.summary is None:
            del content["metadata"]["summary"]
        ours = ("qk_tracing_results", "own_influence", "attention", "head_share", "qk_note")
        for node in content["nodes"]:
            heads = node["feature_type"] == HEAD
            for name in ours:
                if node[name] is None and not (heads and name == "qk_tracing_results"):
                    del node[name]
        return content

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the file, whole or not at all."""
        path = Path(path)
        write_atomically(path, json.dumps(self.as_json(), allow_nan=False).encode())
        return path
