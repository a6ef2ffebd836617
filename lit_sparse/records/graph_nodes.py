"""Nodes of graph.json, with the form of their ids for each kind."""

from typing import Any

import numpy as np
from jaxtyping import Float

from lit_sparse.records.graph import ERROR, FEATURE, HEAD, LOGIT, TOKEN, Node

_HEADS = 1_000_000
"""Added to a head's number, so that viewers do not take it for a feature of its layer."""


def feature_node(layer: int, feature: int, position: int, **extra: Any) -> Node:
    """A transcoder's feature that is active at a position."""
    number = _pair(layer, feature)
    return _node(f"{layer}_{feature}_{position}", f"{layer}_{feature}-0", FEATURE, number, layer, position, extra)


def error_node(layer: int, position: int, **extra: Any) -> Node:
    """The part of the MLP's output that the transcoders do not reproduce."""
    return _node(f"{layer}_error_{position}", f"{layer}_error-{position}", ERROR, -1, layer, position, extra)


def token_node(token_id: int, position: int, **extra: Any) -> Node:
    """The embedding of the token at a position."""
    return _node(f"E_{token_id}_{position}", f"E_{token_id}-{position}", TOKEN, position, "E", position, extra)


def head_node(layer: int, head: int, position: int, **extra: Any) -> Node:
    """A head at its query position; `activation` is its attribution to the explained logits."""
    number = _pair(layer, _HEADS + head)
    return _node(f"{layer}_h{head}_{position}", f"{layer}_h{head}-0", HEAD, number, layer, position, extra)


def logit_node(
    layers: int, token_id: int, position: int, *, token: str, probability: float, target: bool = False, **extra: Any
) -> Node:
    """Logit of a next token. `layers` is the number of the model's layers; `target` marks the explained answer."""
    extra |= {
        "token_prob": probability,
        "is_target_logit": target,
        "clerp": f'Output "{token}" (p={probability:.3f})',  # viewers parse token and probability from this
    }
    layer = layers + 1
    return _node(f"{layer}_{token_id}_{position}", f"L_{token_id}-{position}", LOGIT, token_id, layer, position, extra)


def cumulative(
    own: Float[np.ndarray, " node"], among: Float[np.ndarray, " other"] | None = None
) -> Float[np.ndarray, " node"]:
    """Share of all influence that each node and the more influential ones have together, in [0, 1].

    Args:
        among: the influence of all nodes, if `own` is the influence of some of them. Default: `own` is of all nodes.
    """
    falling = np.sort(own if among is None else among)[::-1]
    together = np.cumsum(falling) / (falling.sum() or 1.0)
    result: Float[np.ndarray, " node"] = together[np.searchsorted(-falling, -own, side="right") - 1]
    return result


def _pair(layer: int, index: int) -> int:
    """One number for both (Cantor's pairing), which viewers take apart again."""
    return (layer + index) * (layer + index + 1) // 2 + index


def _node(
    node_id: str,
    js_node_id: str,
    kind: str,
    feature: int,
    layer: int | str,
    position: int,
    extra: dict[str, Any],
) -> Node:
    unknown = extra.keys() - Node.model_fields.keys()
    assert not unknown, f"no fields of a node: {unknown}"
    return Node(
        node_id=node_id, jsNodeId=js_node_id, feature_type=kind, feature=feature, layer=str(layer), ctx_idx=position,
        **extra,
    )  # fmt: skip
