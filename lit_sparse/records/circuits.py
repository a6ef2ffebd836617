"""circuits.json and comparison.json: measurements of tasks' circuits in two models, and their comparison.

`docs/reference/files.md` explains the numbers.
"""

import json
from pathlib import Path
from typing import Generic, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel

from lit_sparse.common.files import write_atomically
from lit_sparse.common.late import lent
from lit_sparse.records.reading import Text, read_json

Side = Literal["base", "sparse"]
Level = Literal["head", "edge"]
T = TypeVar("T")

SIDES: tuple[Side, Side] = ("base", "sparse")
LEVELS: tuple[Level, Level] = ("head", "edge")
DETAILS, COMPARISON = "circuits.json", "comparison.json"


class BySide(BaseModel, Generic[T]):
    """A value for each of the two models, None if it is not known."""

    base: T | None = None
    sparse: T | None = None

    def of(self, side: Side) -> T | None:
        return self.base if side == "base" else self.sparse


class Shape(BaseModel):
    """Number of a model's layers, and the largest numbers of query heads and key/value heads in a layer."""

    layers: int
    heads_per_layer: int
    kv_heads_per_layer: int


class Behaviour(BaseModel):
    """Behaviour on a task: the share of prompts with log-odds above 0, and the mean log-odds (`clean`)."""

    accuracy: float
    clean: float
    prompts: int


class SizeCurve(BaseModel):
    """Faithfulness (`values`) of the best `sizes` of `total` heads or edges.

    smallest: for each share of the behaviour, the smallest number that keeps it; None if even all fall short.
    cpr, cmd: MIB's areas, for edges only.
    """

    total: int
    cpr: float | None = None
    cmd: float | None = None
    sizes: list[int]
    values: list[float]
    smallest: dict[float, int | None]


class SeedCurves(BaseModel):
    """Curves of heads and of edges on one seed's prompts."""

    seed: int
    head: SizeCurve
    edge: SizeCurve

    def of(self, level: Level) -> SizeCurve:
        return self.head if level == "head" else self.edge


class CircuitEdge(NamedTuple):
    """An edge, with the names of `lit_sparse.anatomy.component_graph` for its writer and reader."""

    writer: str
    reader: str
    score: float


class Circuit(BaseModel):
    """The smallest circuit that keeps a share of the behaviour: `count` edges, of which the strongest are listed."""

    share: float
    edges: list[CircuitEdge]
    count: int


class CircuitExample(BaseModel):
    """A prompt, and for each head ("layer.head") its open attention edges as (query, key, weight)."""

    tokens: list[Text]
    heads: dict[str, list[tuple[int, int, float]]]


class Measured(BaseModel):
    """Measurements of one model on one task.

    p_value: probability of that accuracy by guessing.
    clean, ablated: mean log-odds, with nothing and with everything replaced.
    attention_edges: for each share, the number of open attention edges of a prompt in the smallest circuit of heads.
    circuit: the smallest circuit of edges; None if the drawn share is not reached.
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
    """Measurements on one seed's prompts."""


class ModelOnTask(Measured):
    """Measurements on all seeds' prompts. `circuit` and `example` are the first seed's."""

    runs: list[SeedCurves]


class TaskResult(BySide[ModelOnTask]):
    """Results of a task in both models, or the reason why it was skipped."""

    task: str
    description: str
    skipped: str | None = None


class ComparedModel(BaseModel):
    """One of the two models, with the edge counts of its export."""

    name: str
    model_digest: str | None = None
    edges_per_query: float | None = None
    edge_fraction: float | None = None
    sequence_length: int | None = None


class ComparedModels(BaseModel):
    """The two models of a comparison."""

    base: ComparedModel
    sparse: ComparedModel


class CircuitsResult(BaseModel):
    """Content of circuits.json."""

    models: ComparedModels
    method: str
    ablation: str
    prompts: int
    seeds: list[int]
    shares: list[float]
    tasks: list[TaskResult]

    @property
    def names(self) -> list[str]:
        """Names of the base model and of the sparse one."""
        return [self.models.base.name, self.models.sparse.name]

    @property
    def measured(self) -> list[TaskResult]:
        """The tasks that were not skipped, on which claims may rest."""
        return [task for task in self.tasks if task.skipped is None]

    @property
    def headline_share(self) -> float:
        """The share of the effect for headlines and drawings: 0.9, or else the largest measured."""
        return 0.9 if 0.9 in self.shares else max(self.shares)


class ComparisonRow(BySide[float]):
    """A row of comparison.json.

    It has the numbers of heads or edges (`level`) that each model needs for a share (`fraction`) of a task's effect,
    the ratio base / sparse with its interval, and both models' mean log-odds. Numbers are None if some seed never
    reaches the share. The interval is None also if there is only one seed.
    """

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
        """Reads both files of a folder.

        Raises:
            ValueError: a file is missing or not valid.
        """
        return cls(read_json(folder / DETAILS, CircuitsResult), read_json(folder / COMPARISON, list[ComparisonRow]))

    def write(self, folder: Path) -> None:
        """Write both files, each whole or not at all."""
        rows = json.dumps([row.model_dump() for row in self.rows], indent=2)
        write_atomically(folder / COMPARISON, (rows + "\n").encode())
        write_atomically(folder / DETAILS, (self.result.model_dump_json() + "\n").encode())

    def __repr__(self) -> str:
        tasks = ", ".join(task.task for task in self.result.tasks)
        return f"<Comparison of circuits: {' with '.join(self.result.names)}; tasks: {tasks}>"

    def _repr_html_(self) -> str:
        """The view of `Shown`, which a named tuple cannot inherit."""
        html: str = lent("notebook_html")(self)
        return html

    def row(self, task: str, level: Level, share: float) -> ComparisonRow | None:
        wanted = (task, level, share)
        return next((row for row in self.rows if (row.task, row.level, row.fraction) == wanted), None)
