"""Results of a run and of the commands after it, read from their folders for the joint report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from lit_sparse.records.circuits import Comparison
from lit_sparse.records.digest import require_same
from lit_sparse.records.evaluation import Evaluation
from lit_sparse.records.graph_summary import PromptsSummary, read_summary
from lit_sparse.records.run import RunRecord
from lit_sparse.records.transcoder import TranscoderSummary

T = TypeVar("T")
_SUMMARY = "summary.json"


@dataclass
class Circuits:
    """A folder of the command `circuits`."""

    folder: Path
    found: Comparison

    @classmethod
    def read(cls, folder: Path) -> "Circuits":
        return cls(folder, Comparison.load(folder))

    @property
    def digests(self) -> list[str | None]:
        """Digests of the models to which these results belong, None where it is not recorded. The other parts have the
        same property."""
        return [self.found.result.models.sparse.model_digest]


@dataclass
class Transcoders:
    """A folder of transcoders. `name` identifies it."""

    folder: Path
    name: str
    summary: TranscoderSummary

    @classmethod
    def read(cls, folder: Path) -> "Transcoders":
        inner = folder / "transcoder"
        folder = folder if (folder / _SUMMARY).is_file() or not (inner / _SUMMARY).is_file() else inner
        name = folder.parent.name if folder.name == "transcoder" else folder.name
        return cls(folder, name, TranscoderSummary.load(folder))

    @property
    def digests(self) -> list[str | None]:
        return [self.summary.model_digest]


@dataclass
class Graphs:
    """A folder of the command `graph`, with one prompt or many."""

    folder: Path
    summary: PromptsSummary

    @classmethod
    def read(cls, folder: Path) -> "Graphs":
        return cls(folder, read_summary(folder / _SUMMARY))

    @property
    def digests(self) -> list[str | None]:
        return [prompt.model_digest for prompt in self.summary.prompts]


@dataclass
class RunParts:
    """All parts that were found. The report says that a part is missing if its field is empty."""

    run_dir: Path
    record: RunRecord | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    circuits: list[Circuits] = field(default_factory=list)
    transcoders: list[Transcoders] = field(default_factory=list)
    graphs: list[Graphs] = field(default_factory=list)

    @classmethod
    def find(
        cls,
        run_dir: Path,
        *,
        circuits: Sequence[Path] = (),
        transcoders: Sequence[Path] = (),
        graphs: Sequence[Path] = (),
    ) -> "RunParts":
        """Read the named folders, or those under `run_dir` (circuits*, transcoder*, graph*) if none is named.

        Raises:
            ValueError: there is no such run, a named folder lacks its files, a file is not valid, or circuits,
                transcoders or graphs belong to another model than the run's.
        """
        if not (run_dir / "config.yaml").is_file() and not (run_dir / "record").is_dir():
            raise ValueError(
                f"no run at {run_dir}: it has neither config.yaml nor record/. Name a run's folder with --run"
            )
        record = RunRecord.load(run_dir / "record") if (run_dir / "record").is_dir() else None
        evaluations = sorted({run_dir / "evaluation.json", *run_dir.glob("evaluation*/evaluation.json")})
        parts = cls(
            run_dir,
            record,
            [Evaluation.load(file) for file in evaluations if file.is_file()],
            _all(Circuits.read, circuits, run_dir, "circuits*/comparison.json"),
            _all(Transcoders.read, transcoders, run_dir, "transcoder*/**/summary.json"),
            _all(Graphs.read, graphs, run_dir, "graph*/summary.json"),
        )
        parts._refuse_other_models()
        return parts

    def _refuse_other_models(self) -> None:
        parts: list[Circuits | Transcoders | Graphs] = [*self.circuits, *self.transcoders, *self.graphs]
        found = [(part.folder, one) for part in parts for one in part.digests]
        if not found:
            return
        wanted = None if self.record is None else self.record.summary.model_digest
        if wanted is None:
            raise ValueError(
                f"the run {self.run_dir} does not record which model it made, so {found[0][0]} cannot be compared with "
                "it: it has not ended, or an older version ended it. End it again: lit-sparse fit --config "
                f"{self.run_dir / 'config.yaml'} --on_existing resume"
            )
        advice = (
            f"make it with {self.run_dir / 'model'}, or name the folders of this run's own model with --circuits, "
            "--transcoders and --graphs"
        )
        for folder, one in found:
            require_same(str(folder), one, wanted, advice)


def _all(read: Callable[[Path], T], named: Sequence[Path], run_dir: Path, pattern: str) -> list[T]:
    folders = named or sorted(file.parent for file in run_dir.glob(pattern))
    return [read(folder) for folder in folders]
