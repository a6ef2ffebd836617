"""summary.json of a transcoder folder: what transcoders reproduce of a model's MLPs on held-out text."""

import json
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from lit_sparse.common.files import write_atomically
from lit_sparse.records.reading import read_json

FILE = "summary.json"


class TranscoderSummary(BaseModel):
    """Means over layers, and by layer; in nats per scored token.

    model_digest: of the weights that they stand in for (see `lit_sparse.models.digest`).
    features: of a layer.
    l0: active features a token.
    dead_fraction: of the features, that have not fired for a while.
    explained_variance: of the MLPs' outputs, over tokens that are not massive in them.
    ce, replacement_ce, mean_ablation_ce: of the model, with the transcoders for all its MLPs, with their means.
    """

    model: str
    model_digest: str | None = None
    layers: int
    features: int
    cross_layer: bool
    activation: str
    tokens: int
    steps: int
    seconds: float
    dead_fraction: float
    explained_variance: float
    explained_variance_by_layer: list[float]
    l0: float
    l0_by_layer: list[float]
    ce: float
    replacement_ce: float
    mean_ablation_ce: float

    @classmethod
    def load(cls, folder: Path) -> Self:
        """
        Raises:
            ValueError: there is no such file, or it is not a transcoder's summary.
        """
        return read_json(folder / FILE, cls)

    def write(self, folder: Path) -> None:
        """Replaces the file as a whole."""
        write_atomically(folder / FILE, (json.dumps(self.model_dump(), indent=2) + "\n").encode())
