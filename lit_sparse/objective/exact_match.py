"""Whether whole sequences are right, for tasks with one answer."""

from jaxtyping import Bool, Int
from torch import Tensor

from lit_sparse.objective.losses import IGNORED


def exact_match(predictions: Int[Tensor, "batch time"], labels: Int[Tensor, "batch time"]) -> Bool[Tensor, " batch"]:
    """Whether every scored position of a sequence (labels other than `IGNORED`) is predicted right."""
    return ((predictions == labels) | (labels == IGNORED)).all(dim=-1)
