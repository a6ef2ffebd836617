"""The whole story of a run as one HTML file: training, edges, abilities, circuits, transcoders, attribution graphs.

Works offline and loads nothing; links lead, by relative path, to the explorers that other commands wrote.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_sparse.common import formatting as fmt
from lit_sparse.records.circuits import LEVELS
from lit_sparse.records.run_parts import RunParts
from lit_sparse.records.run_summary import RunSummary
from lit_sparse.report.circuits.values import PLURAL, ratio_range, tile_class
from lit_sparse.report.run.explorer import Explorer
from lit_sparse.report.run.plots import render_plots
from lit_sparse.report.run.story_graphs import GraphsPart, heads_words, kind
from lit_sparse.report.run.story_sections import Abilities, CircuitsPart, all_ratios, transcoder_rows
from lit_sparse.report.run.wording import constraint_name, constraint_words, edges_tile, open_edges, summary_rows
from lit_sparse.report.shared.picture import Picture
from lit_sparse.report.shared.rendering import render, write_html
from lit_sparse.report.shared.tile import Tile

PAGE = "story.html"


def write_run_report(
    run_dir: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    circuits: Sequence[str | os.PathLike[str]] = (),
    transcoders: Sequence[str | os.PathLike[str]] = (),
    graphs: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Write the page and give its path.

    Args:
        run_dir: a run's folder.
        out: the HTML file, replaced whole if it exists; `story.html` in the run's folder by default.
        circuits, transcoders, graphs: folders that these commands wrote; by default those in the run's folder.

    Raises:
        ValueError: no such run, or a named folder without what it should hold.
    """
    run_dir = Path(run_dir)
    parts = RunParts.find(
        run_dir,
        circuits=[Path(one) for one in circuits],
        transcoders=[Path(one) for one in transcoders],
        graphs=[Path(one) for one in graphs],
    )
    path = run_dir / PAGE if out is None else Path(out)
    return write_html(run_html(parts, path, {} if parts.record is None else render_plots(parts.record)), path)


def run_html(parts: RunParts, out: Path, plots: Mapping[str, bytes]) -> str:
    """The page as text.

    Args:
        parts: what was found of the run.
        out: where the page will be, which its links start from.
        plots: PNG by file name as from `render_plots`.
    """
    summary = RunSummary() if parts.record is None else parts.record.summary
    return render(
        "story.html",
        title=open_edges(summary) or "Report of a run",
        model=summary.model or parts.run_dir.name,
        summary=summary,
        constraint=constraint_words(summary),
        run=parts.run_dir.name,
        tiles=_tiles(parts, summary),
        sections=_sections(parts, out, plots),
    )


class _Section(NamedTuple):
    """A part of the story: what `templates/story/NAME.html` shows, or nothing yet and the command that makes it."""

    name: str
    title: str
    shown: Any
    missing: str
    command: str = ""


class _Training(NamedTuple):
    rows: list[tuple[str, str]]
    picture: Picture | None


class _Edges(NamedTuple):
    picture: Picture | None
    explorer: Explorer | None


def _tiles(parts: RunParts, summary: RunSummary) -> list[Tile]:
    tiles = []
    if parts.record is not None:
        more = f"{constraint_name(summary)}, nats per token; tolerance {fmt.decimal(summary.tolerance)}"
        tiles += [edges_tile(summary), Tile("Constraint", fmt.decimal(summary.constraint_value), more)]
    for level in LEVELS if parts.circuits else ():
        ratios = all_ratios(parts.circuits, level)
        label = f"{PLURAL[level].capitalize()} in the sparse model's circuits"
        tiles.append(Tile(label, ratio_range(ratios), "than the base, by task", tile_class(ratios)))
    label = "Heads with 80 % of the attention attribution"
    for one in parts.graphs:
        words = f"{' against '.join(kind(model) for model in one.summary.models)}, mean over prompts"
        tiles.append(Tile(label, heads_words(one.summary), words))
    return tiles


def _sections(parts: RunParts, out: Path, plots: Mapping[str, bytes]) -> list[_Section]:
    def inside(*names: str) -> str:
        return shlex.quote(str(parts.run_dir.joinpath(*names)))

    record, model = parts.record, inside("model")
    training, edges = None, None
    if record is not None:
        training = _Training(summary_rows(record.summary), _training_picture(plots))
        explorer = None if record.example is None else Explorer.of(record.example)
        edges = _Edges(_edges_picture(plots), explorer)
    return [
        _Section(
            "training", "Training", training, "This run has not ended: its record is not written yet.",
            f"lit-sparse fit --config {inside('config.yaml')} --on_existing resume",
        ),
        _Section("edges", "Edges", edges, "They come with the record of the run."),
        _Section(
            "abilities", "Abilities of the sparse model", [Abilities.of(one) for one in parts.evaluations],
            "There is no evaluation on tasks.",
            f"lit-sparse evaluate --model {model} --tasks agreement,addition --out {inside('evaluation')}",
        ),
        _Section(
            "circuits", "Circuits", [CircuitsPart.of(one, out) for one in parts.circuits],
            "There is no comparison of task circuits.",
            f"lit-sparse circuits --model {model} --task all --out {inside('circuits')}",
        ),
        _Section(
            "transcoders", "Transcoders", parts.transcoders and transcoder_rows(parts.transcoders),
            "There are no transcoders.",
            "lit-sparse fit --config configs/transcoder_smollm2.yaml "
            f"--model.init_args.model {model} --run_dir {inside('transcoder')}",
        ),
        _Section(
            "graphs", "Attribution graphs", [GraphsPart.of(one, out) for one in parts.graphs],
            "There are no attribution graphs.",
            f"lit-sparse graph --model {model} --transcoders {inside('transcoder', 'transcoder')} "
            f'--prompt "The opposite of hot is" --out {inside("graphs")}',
        ),
    ]  # fmt: skip


def _training_picture(plots: Mapping[str, bytes]) -> Picture | None:
    alt = "Curves over training steps: cross-entropy, the constraint, its multiplier, and the share of open edges."
    caption = "Gates are sampled in training; on the validation split they are deterministic."
    return Picture(plots["training.png"], alt, caption) if "training.png" in plots else None


def _edges_picture(plots: Mapping[str, bytes]) -> Picture | None:
    alt = (
        "Two heat maps of layers by heads: the share of open edges in each head, at the start and the end of training."
    )
    caption = (
        "Open edges of every head of the sparse model at the start and at the end of training, on the test split and "
        "on one logarithmic colour scale. In the base model all edges are open."
    )
    return Picture(plots["edges.png"], alt, caption) if "edges.png" in plots else None
