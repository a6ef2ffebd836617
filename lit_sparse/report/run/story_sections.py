"""Sections of a run's story on abilities, circuits and transcoders; `templates/story/` lays them out."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from lit_sparse.common.formatting import MISSING, count, decimal, duration, number, percent, signed
from lit_sparse.records.circuits import LEVELS, Level
from lit_sparse.records.evaluation import Estimate, Evaluation
from lit_sparse.records.run_parts import Circuits, Transcoders
from lit_sparse.report.circuits.values import Kept, ratios


class Cell(NamedTuple):
    """A number, and in small letters how far it may be off."""

    value: str
    small: str = ""


class AbilityRow(NamedTuple):
    name: str
    metric: str
    cells: list[Cell]


class Abilities(NamedTuple):
    """Tasks and text, of the sparse model beside the base."""

    model: str
    against: str | None
    complete: bool
    rows: list[AbilityRow]

    @classmethod
    def of(cls, found: Evaluation) -> "Abilities":
        rows = [
            AbilityRow(task.task, task.metric, [
                _share(task.base), _share(task.model), _share(task.difference, sign=True), Cell(percent(task.chance)),
            ])
            for task in found.tasks
        ]  # fmt: skip
        if found.text is not None:
            text = found.text
            cells = [_nats(text.base_ce), _nats(text.ce), _nats(text.difference, sign=True), Cell(MISSING)]
            rows.append(AbilityRow("Cross-entropy", "nats per token", cells))
        return cls(found.model, found.against, found.complete, rows)


class CircuitsPart(NamedTuple):
    """Numbers of heads and edges that keep the headline share of each task's effect; a link to the circuits' page."""

    share: float
    names: list[str]
    rows: list[tuple[str, list[Kept]]]
    href: str | None

    @classmethod
    def of(cls, one: Circuits, out: Path) -> "CircuitsPart":
        result = one.found.result
        share, page = result.headline_share, one.folder / "circuits.html"
        rows = [(task.task, [Kept.of(one.found, task.task, level, share) for level in LEVELS]) for task in result.tasks]
        return cls(share, result.names, rows, link(page, out) if page.is_file() else None)


class TranscoderRows(NamedTuple):
    """Measures of transcoders; the columns are transcoders."""

    transcoders: Sequence[Transcoders]
    rows: list[tuple[str, list[str]]]


def transcoder_rows(found: Sequence[Transcoders]) -> TranscoderRows:
    all_of = [one.summary for one in found]
    return TranscoderRows(found, [
        ("Features a layer", [count(one.features) for one in all_of]),
        ("Training tokens", [count(one.tokens) for one in all_of]),
        ("Training time", [duration(one.seconds) for one in all_of]),
        ("Active features per layer and token (L0)", [decimal(one.l0, 1) for one in all_of]),
        ("Explained variance", [percent(one.explained_variance) for one in all_of]),
        ("Features that never fire", [percent(one.dead_fraction) for one in all_of]),
        ("Model's cross-entropy", [decimal(one.ce) for one in all_of]),
        ("… with transcoders for all MLPs", [decimal(one.replacement_ce) for one in all_of]),
        ("… with the MLPs' mean outputs", [decimal(one.mean_ablation_ce) for one in all_of]),
    ])  # fmt: skip


def all_ratios(found: Sequence[Circuits], level: Level) -> list[float]:
    """The ratios base / sparse of all comparisons, ascending."""
    return sorted(ratio for one in found for ratio in ratios(one.found, level))


def link(target: Path, out: Path) -> str:
    """The address of a file for the page `out`, by relative path."""
    relative = Path(os.path.relpath(target.resolve(), out.resolve().parent)).as_posix()
    # Without the dot a first part with a colon would read as a scheme.
    return f"./{quote(relative)}"


def _share(found: Estimate | None, sign: bool = False) -> Cell:
    return _cell(found, 100, 1, " %", sign)


def _nats(found: Estimate | None, sign: bool = False) -> Cell:
    return _cell(found, 1, 3, "", sign)


def _cell(found: Estimate | None, factor: int, digits: int, unit: str, sign: bool) -> Cell:
    if found is None or number(found.value) is None:
        return Cell(MISSING)
    spread = "" if found.stderr is None else f"± {decimal(factor * found.stderr, digits)}"
    return Cell(f"{(signed if sign else decimal)(factor * found.value, digits)}{unit}", spread)
