"""Comparing models by their digests, which `models.digest` makes and describes."""

import numpy as np

_BORDER = 3e-4


def same_model(one: str, other: str) -> bool:
    """Whether two digests are of the same model, up to rounding."""
    (gates, weights), (other_gates, other_weights) = (digest.split("-") for digest in (one, other))
    first, second = (np.frombuffer(bytes.fromhex(part), ">f4").astype(float) for part in (weights, other_weights))
    return gates == other_gates and bool(np.sqrt(np.mean((first - second) ** 2)) < _BORDER)


def require_same(what: str, found: str | None, wanted: str, advice: str) -> None:
    """Refuses figures of another model.

    Args:
        what: they are, as the subject of a sentence.
        found: the digest that they record, None where they have none.
        wanted: the digest of the model that they are to be shown as.
        advice: what the user can do about another model's.

    Raises:
        ValueError: they are of another model, or do not say of which.
    """
    if found is None:
        raise ValueError(f"{what} does not record which model it belongs to (made by an older version): make it again")
    if not same_model(found, wanted):
        raise ValueError(f"{what} belongs to another model: {advice}")
