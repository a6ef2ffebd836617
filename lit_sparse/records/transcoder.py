"""summary.json of a transcoder folder: quality of the transcoders on held-out text."""

import json
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from lit_sparse.common.files import write_atomically
from lit_sparse.records.reading import read_json

FILE = "summary.json"


class TranscoderSummary(BaseModel):
    """Quality of transcoders as means over layers and by layer, and cross-entropies in nats per scored token.

    model_digest: digest of the model that they were trained on (see `lit_sparse.models.digest`).
    features: number of features of a layer.
    l0: active features per token.
    dead_fraction: share of the features that have not been active for a while.
    explained_variance: explained share of the variance of the MLPs' outputs, over tokens that are not massive in them.
    ce, replacement_ce, mean_ablation_ce: cross-entropy of the model, with the transcoders for all its MLPs, and with
        the MLPs' mean outputs.
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
        """Reads the summary.json of a folder.

        Raises:
            ValueError: there is no such file, or it is not a transcoder's summary.
        """
        return read_json(folder / FILE, cls)

    def write(self, folder: Path) -> None:
        """Writes the file, whole or not at all."""
        write_atomically(folder / FILE, (json.dumps(self.model_dump(), indent=2) + "\n").encode())
