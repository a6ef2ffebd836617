"""Comparison of models by their digests, which `models.digest` makes and describes."""

import numpy as np

_BORDER = 3e-4


def same_model(one: str, other: str) -> bool:
    """True if two digests belong to the same model, up to rounding."""
    (gates, weights), (other_gates, other_weights) = (digest.split("-") for digest in (one, other))
    first, second = (np.frombuffer(bytes.fromhex(part), ">f4").astype(float) for part in (weights, other_weights))
    return gates == other_gates and bool(np.sqrt(np.mean((first - second) ** 2)) < _BORDER)


def require_same(what: str, found: str | None, wanted: str, advice: str) -> None:
    """Refuses results of another model.

    Args:
        what: name of the results, as the subject of a sentence.
        found: digest that the results record; None if they record none.
        wanted: digest of the model to which the results should belong.
        advice: advice to the user for results of another model.

    Raises:
        ValueError: the results belong to another model, or do not record their model.
    """
    if found is None:
        raise ValueError(f"{what} does not record which model it belongs to (made by an older version): make it again")
    if not same_model(found, wanted):
        raise ValueError(f"{what} belongs to another model: {advice}")
