"""A comparison of circuits as one HTML file: works offline, loads nothing, escapes all text from outside."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lit_sparse.common.formatting import MISSING, decimal, edge_share, percent, visible
from lit_sparse.records.circuits import LEVELS, SIDES, Comparison, SeedCurves, TaskResult
from lit_sparse.report.circuits.explorer import CircuitsExplorer
from lit_sparse.report.circuits.values import (
    PLURAL,
    Kept,
    attention_edges,
    ratio_range,
    ratios,
    score_words,
    size,
    tile_class,
)
from lit_sparse.report.shared.picture import Picture
from lit_sparse.report.shared.rendering import render, write_html
from lit_sparse.report.shared.tile import Tile

METHODS = {
    "eap": "Edges are ranked by edge attribution patching (EAP)",
    "eap-ig": "Edges are ranked by edge attribution patching with integrated gradients (EAP-IG)",
    "exact": "Edges are ranked by activation patching of one edge at a time",
}


def write_circuits_page(found: Comparison, path: str | os.PathLike[str], plots: Mapping[str, bytes]) -> Path:
    """Write the page of a comparison and give its path.

    Args:
        found: what was measured.
        path: the HTML file, replaced whole if it exists.
        plots: PNG by file name as from `render_circuits`; ratios and curves go into the page.
    """
    return write_html(circuits_html(found, plots), path)


def circuits_html(found: Comparison, plots: Mapping[str, bytes]) -> str:
    """The page as text."""
    result = found.result
    templates, areas = _more(result.measured)
    return render(
        "circuits.html",
        result=result,
        tiles=_tiles(found),
        groups=[_Group.of(found, task) for task in result.tasks],
        templates=templates,
        areas=areas,
        explorer=CircuitsExplorer.of(result),
        method=METHODS.get(result.method, f"Edges are ranked by {result.method}"),
        pictures=_pictures(found, plots),
    )


class _Row(NamedTuple):
    """Sizes that keep one share of a task's effect, by level, and the open attention edges, by side."""

    share: float
    levels: list[Kept]
    attention: list[str]


class _Group(NamedTuple):
    """A task's rows in the table of sizes."""

    task: TaskResult
    scores: str
    rows: list[_Row]

    @classmethod
    def of(cls, found: Comparison, task: TaskResult) -> "_Group":
        rows = [
            _Row(
                share,
                [Kept.of(found, task.task, level, share) for level in LEVELS],
                [size(attention_edges(task, side, share)) for side in SIDES],
            )
            for share in found.result.shares
        ]
        return cls(task, " · ".join(f"{what} {a} → {b}" for what, a, b in score_words(task)), rows)


def _tiles(found: Comparison) -> list[Tile]:
    share, tiles = percent(found.result.headline_share), []
    for level in LEVELS:
        values = ratios(found, level)
        more = f"than in the base model's, for {share} of the effect; {len(values)} of {len(found.result.tasks)} tasks"
        label = f"{PLURAL[level].capitalize()} in the sparse model's circuits"
        tiles.append(Tile(label, ratio_range(values), more, tile_class(values)))
    sparse = found.result.models.sparse
    kept = edge_share(sparse.edge_fraction, sparse.sequence_length)
    return [*tiles, Tile("Open edges per query and head", decimal(sparse.edges_per_query, 2), kept)]


def _more(tasks: Sequence[TaskResult]) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of abilities by template, and of the areas under the curves."""
    templates, areas = [], []
    for task in tasks:
        for side in SIDES:
            model = task.of(side)
            for name, one in model.templates.items() if model else ():
                scores = (str(one.prompts), percent(one.accuracy), decimal(one.clean, 2))
                templates.append([task.task, side, name, *scores])
            runs: Sequence[SeedCurves] = model.runs if model else ()
            means = (_mean([run.edge.cpr for run in runs]), _mean([run.edge.cmd for run in runs]))
            areas.append([task.task, side, *means])
    return templates, areas


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return decimal(sum(known) / len(known)) if known else MISSING


def _pictures(found: Comparison, plots: Mapping[str, bytes]) -> list[Picture]:
    share = found.result.headline_share
    words = percent(share)
    ranges = "; ".join(f"{PLURAL[level]} {ratio_range(ratios(found, level))}" for level in LEVELS)
    alt = f"The sparse model's circuits against the base model's, by task: {ranges}."
    caption = (
        f"Ratio of the sizes of the two circuits that keep {words} of the effect, with its interval. Right of the "
        "dashed line the sparse model's circuit is smaller. There is no ratio if a model does not reach the "
        "share, or if it needs nothing for it."
    )
    figures = [("ratios.png", alt, caption)]
    for task in found.result.measured:
        kept = []
        for level in LEVELS:
            one = Kept.of(found, task.task, level, share)
            kept.append(f"{one.base} {PLURAL[level]} in the base model and {one.sparse} in the sparse one")
        alt = f"Faithfulness over circuit size on {visible(task.task)}. {words} is kept by {'; '.join(kept)}."
        caption = (
            "A thin line is one seed, a bold line is the mean over seeds. The dots are the smallest circuits that keep "
            f"{words} of the effect, as a mean over seeds."
        )
        figures.append((f"{task.task}_curves.png", alt, caption))
    return [Picture(plots[name], alt, caption) for name, alt, caption in figures if name in plots]
