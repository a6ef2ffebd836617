"""examples.json of a transcoder folder: the contexts in which each feature was most active."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from lit_sparse.records.reading import Finite, Text


class Example(BaseModel):
    """One context. `values` are the feature's activations by token, `peak` is the index of the largest."""

    tokens: list[Text]
    values: list[Finite]
    peak: int


class Examples(BaseModel):
    """Content of examples.json. Keys of `features` are "{layer}_{feature}"."""

    features: Mapping[str, list[Example]] = {}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read examples.json.

        Raises:
            ValueError: there is no such file, or it is not valid.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"no examples at {path}: training transcoders writes them beside the weights")
        return cls.model_validate_json(path.read_bytes())
