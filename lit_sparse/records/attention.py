"""The attention of one sentence in one model or two, as weights."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lit_sparse.records.run import as_array
from lit_sparse.records.shown import Shown


@dataclass
class ModelAttention:
    """One model's attention.

    Args:
        model: name of the model.
        sparse: True if the model has gates.
        weights: attention weights, exactly 0 at closed edges. The keys after a query are ignored.
    """

    model: str
    sparse: bool
    weights: Float[np.ndarray, "layer head query key"]

    def __post_init__(self) -> None:
        self.weights = np.tril(as_array(self.weights, 4, "weights"))

    @property
    def kind(self) -> str:
        return "sparse" if self.sparse else "dense"

    @property
    def open(self) -> int:
        """Number of edges with a weight other than 0, in all layers and heads."""
        return int(np.count_nonzero(self.weights))


@dataclass(repr=False)
class SentenceAttention(Shown):
    """Attention of a sentence in the requested model, and in a second one. Jupyter shows it head by head.

    Raises:
        ValueError: the models differ in layers or heads, or their weights do not belong to these tokens.
    """

    tokens: list[str]
    model: ModelAttention
    against: ModelAttention | None = None

    def __post_init__(self) -> None:
        size = len(self.tokens)
        for one in self.models:
            if one.weights.shape[2:] != (size, size):
                raise ValueError(f"weights of shape {one.weights.shape} are not those of {size} tokens")
        if self.against is not None and self.model.weights.shape != self.against.weights.shape:
            shapes = [f"{one.weights.shape[0]} layers of {one.weights.shape[1]} heads" for one in self.models]
            raise ValueError(f"head by head only models of one shape can be compared, not {' with '.join(shapes)}")

    @property
    def models(self) -> list[ModelAttention]:
        return [self.model] if self.against is None else [self.model, self.against]

    def __repr__(self) -> str:
        layers, heads, size, _ = self.model.weights.shape
        allowed = layers * heads * size * (size + 1) // 2
        found = " and ".join(f"{one.open:,} of {allowed:,} edges open ({one.kind})" for one in self.models)
        return f"<SentenceAttention: {size} tokens, {found}>"
