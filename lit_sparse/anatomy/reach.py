"""Reachability of the answer along open edges, on plain arrays without a model.

The residual stream and the MLPs keep a position. Only an edge moves information, from its key's position to its
query's. The state before layer 0 at a position is its input token. The answer is read at the last position after the
last layer.
"""

import numpy as np
from jaxtyping import Bool, Float


def reachable(
    weights: list[Float[np.ndarray, "head query key"]],
) -> Bool[np.ndarray, "layer_and_answer position"]:
    """Mask of the positions whose residual stream before layer l (row l) reaches the answer (row L) through values."""
    positions = weights[0].shape[-1]
    seen = np.zeros((len(weights) + 1, positions), dtype=bool)
    seen[-1, -1] = True
    for layer in reversed(range(len(weights))):
        is_open = (weights[layer] != 0).any(0)
        seen[layer] = seen[layer + 1] | is_open[seen[layer + 1]].any(0)
    return seen
