"""Exact match of whole sequences, for tasks with one answer."""

from jaxtyping import Bool, Int
from torch import Tensor

from lit_sparse.objective.losses import IGNORED


def exact_match(predictions: Int[Tensor, "batch time"], labels: Int[Tensor, "batch time"]) -> Bool[Tensor, " batch"]:
    """True for each sequence whose scored positions (labels other than `IGNORED`) are all predicted right."""
    return ((predictions == labels) | (labels == IGNORED)).all(dim=-1)
