"""circuits.json and comparison.json: what was measured of tasks' circuits in two models, and how they compare.

`docs/reference/files.md` says what the numbers mean.
"""

import json
from pathlib import Path
from typing import Generic, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel

from lit_sparse.common.files import write_atomically
from lit_sparse.records.reading import Text, read_json

Side = Literal["base", "sparse"]
Level = Literal["head", "edge"]
T = TypeVar("T")

SIDES: tuple[Side, Side] = ("base", "sparse")
LEVELS: tuple[Level, Level] = ("head", "edge")
DETAILS, COMPARISON = "circuits.json", "comparison.json"


class BySide(BaseModel, Generic[T]):
    """Something of both models, as far as it is known."""

    base: T | None = None
    sparse: T | None = None

    def of(self, side: Side) -> T | None:
        return self.base if side == "base" else self.sparse


class Shape(BaseModel):
    """A model's layers, and the most query heads and key/value heads that one of them has."""

    layers: int
    heads_per_layer: int
    kv_heads_per_layer: int


class Behaviour(BaseModel):
    """How well a task is done: the share of prompts with log-odds above 0, and the mean log-odds (`clean`)."""

    accuracy: float
    clean: float
    prompts: int


class SizeCurve(BaseModel):
    """Faithfulness (`values`) of the best `sizes` of `total` heads or edges.

    smallest: by share of the behaviour, the fewest that keep it; None where even all fall short.
    cpr, cmd: MIB's areas, of edges only.
    """

    total: int
    cpr: float | None = None
    cmd: float | None = None
    sizes: list[int]
    values: list[float]
    smallest: dict[float, int | None]


class SeedCurves(BaseModel):
    """Both curves of one seed's prompts."""

    seed: int
    head: SizeCurve
    edge: SizeCurve

    def of(self, level: Level) -> SizeCurve:
        return self.head if level == "head" else self.edge


class CircuitEdge(NamedTuple):
    """By the names that `lit_sparse.anatomy.component_graph` gives to writers and readers."""

    writer: str
    reader: str
    score: float


class Circuit(BaseModel):
    """The smallest circuit that keeps a share of the behaviour: `count` edges, the strongest of them listed."""

    share: float
    edges: list[CircuitEdge]
    count: int


class CircuitExample(BaseModel):
    """A prompt, and by head ("layer.head") its open attention edges as (query, key, weight)."""

    tokens: list[Text]
    heads: dict[str, list[tuple[int, int, float]]]


class Measured(BaseModel):
    """What was measured of one model on one task.

    p_value: the chance of that accuracy by guessing.
    clean, ablated: mean log-odds, with nothing and with everything replaced.
    attention_edges: by share, the open attention edges of a prompt inside the smallest circuit of heads.
    circuit: the smallest one of edges, None where the drawn share is not reached.
    """

    shape: Shape
    accuracy: float
    p_value: float
    clean: float
    ablated: float
    templates: dict[str, Behaviour]
    attention_edges: dict[float, float | None]
    circuit: Circuit | None
    example: CircuitExample


class TaskRun(Measured, SeedCurves):
    """With one seed's prompts."""


class ModelOnTask(Measured):
    """With all seeds' prompts; `circuit` and `example` are the first seed's."""

    runs: list[SeedCurves]


class TaskResult(BySide[ModelOnTask]):
    """A task in both models, or why it was skipped."""

    task: str
    description: str
    skipped: str | None = None


class ComparedModel(BaseModel):
    """One of the two models, and what its export says of its edges."""

    name: str
    model_digest: str | None = None
    edges_per_query: float | None = None
    edge_fraction: float | None = None
    sequence_length: int | None = None


class ComparedModels(BaseModel):
    base: ComparedModel
    sparse: ComparedModel


class CircuitsResult(BaseModel):
    """circuits.json."""

    models: ComparedModels
    method: str
    ablation: str
    prompts: int
    seeds: list[int]
    shares: list[float]
    tasks: list[TaskResult]

    @property
    def names(self) -> list[str]:
        """Of the base model and of the sparse one."""
        return [self.models.base.name, self.models.sparse.name]

    @property
    def measured(self) -> list[TaskResult]:
        """The tasks that claims may rest on."""
        return [task for task in self.tasks if task.skipped is None]

    @property
    def headline_share(self) -> float:
        """The share of the effect that headlines and drawings are about: 0.9, or else the largest measured."""
        return 0.9 if 0.9 in self.shares else max(self.shares)


class ComparisonRow(BySide[float]):
    """A row of comparison.json: how many heads or edges (`level`) each model needs for a share (`fraction`) of a task's
    effect, the ratio base / sparse with its interval, and both models' mean log-odds. None: some seed never gets there;
    of the interval, also that there is one seed."""

    task: str
    level: Level
    fraction: float
    ratio: float | None = None
    """base / sparse"""
    base_score: float
    sparse_score: float
    seeds: int
    ratio_low: float | None = None
    ratio_high: float | None = None


class Comparison(NamedTuple):
    """Both files of one folder."""

    result: CircuitsResult
    rows: list[ComparisonRow]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """
        Raises:
            ValueError: a file is not there, or not what it should be.
        """
        return cls(read_json(folder / DETAILS, CircuitsResult), read_json(folder / COMPARISON, list[ComparisonRow]))

    def write(self, folder: Path) -> None:
        """Write both files, each whole or not at all."""
        rows = json.dumps([row.model_dump() for row in self.rows], indent=2)
        write_atomically(folder / COMPARISON, (rows + "\n").encode())
        write_atomically(folder / DETAILS, (self.result.model_dump_json() + "\n").encode())

    def row(self, task: str, level: Level, share: float) -> ComparisonRow | None:
        wanted = (task, level, share)
        return next((row for row in self.rows if (row.task, row.level, row.fraction) == wanted), None)
