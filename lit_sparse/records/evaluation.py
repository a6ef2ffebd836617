"""evaluation.json: evaluation of a sparse model and its base, unrounded.

A measured value is {value, stderr}. null means not measured, without meaning, or not finite.
"""

import math
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, PlainSerializer

from lit_sparse.common.files import write_atomically
from lit_sparse.records.reading import read_json

FILE = "evaluation.json"


class Estimate(NamedTuple):
    """A mean and its standard error, None if there is none."""

    value: Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
    stderr: float | None


Measured = Annotated[Estimate, PlainSerializer(lambda one: one._asdict())]


class TaskComparison(BaseModel):
    """One metric of one task, for a model and its base. None means not measured (yet).

    metric: name of the metric, with the answer filter in brackets if the task has one.
    questions: number of questions; None for a group.
    chance: expected accuracy of guessing; None if the metric is not the accuracy of a multiple choice.
    higher_is_better: as the task declares; None if it does not.
    difference: model - base, with the standard error of the mean of the paired differences.
    """

    task: str
    metric: str
    questions: int | None
    chance: float | None
    higher_is_better: bool | None
    model: Measured
    base: Measured | None
    difference: Measured | None


class TextScore(BaseModel):
    """Means over the scored tokens of a text, in nats; standard errors are over sequences.

    `base_ce`, `difference` (CE of the model - CE of the base) and `kl` (base || model) are None without a base. The
    edge counts are None for a model without gates. `edges_per_query` is a mean over heads.
    """

    tokens: int
    sequences: int
    sequence_length: int
    ce: Measured
    base_ce: Measured | None
    difference: Measured | None
    kl: Measured | None
    edge_fraction: float | None
    edges_per_query: float | None


class TextComparison(TextScore):
    """Scores of a text with perplexities."""

    perplexity: Measured
    base_perplexity: Measured | None


class Evaluation(BaseModel):
    """Content of evaluation.json.

    complete: false until all requested values are measured.
    model, against: names of the model and of its base.
    settings: tasks, limit, text, sequence_length, batch_size, dtype.
    versions: versions of the libraries on which the numbers depend.
    """

    format: int = 1
    complete: bool
    model: str
    against: str | None
    settings: dict[str, Any]
    versions: dict[str, str]
    tasks: list[TaskComparison]
    text: TextComparison | None

    @classmethod
    def load(cls, file: Path) -> Self:
        """Reads an evaluation.json.

        Raises:
            ValueError: there is no such file, or it is not an evaluation.
        """
        return read_json(file, cls)

    def write(self, file: Path) -> None:
        """Writes the file, whole or not at all."""
        write_atomically(file, (self.model_dump_json(indent=2) + "\n").encode())
