"""The whole story of a run as one HTML file: training, edges, abilities, circuits, transcoders, attribution graphs.

Works offline and loads nothing; links lead, by relative path, to the explorers that other commands wrote.
"""

import base64
import os
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from lit_sparse.common import formatting as fmt
from lit_sparse.common.files import write_atomically
from lit_sparse.records.run import RunRecord
from lit_sparse.records.run_parts import RunParts
from lit_sparse.report.circuits.values import LEVELS, PLURAL, ratio_range, tile_class
from lit_sparse.report.run.explorer import explorer
from lit_sparse.report.run.plots import render_plots
from lit_sparse.report.run.story_sections import (
    all_ratios,
    circuits_section,
    evaluation_section,
    graphs_section,
    heads_words,
    missing,
    text,
    transcoders_section,
)
from lit_sparse.report.shared.frame import html_page

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
    plots = {} if parts.record is None else render_plots(parts.record)
    write_atomically(path, run_html(parts, path, plots).encode())
    return path


def run_html(parts: RunParts, out: Path, plots: Mapping[str, bytes]) -> str:
    """The page as text.

    Args:
        parts: what was found of the run.
        out: where the page will be, which its links start from.
        plots: PNG by file name as from `render_plots`.
    """
    sections = _sections(parts, out, plots)
    contents = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{html}</section>' for name, title, html in sections)
    return html_page(
        escape(_title(parts)),
        f"""{_headline(parts)}
<nav aria-label="Contents"><ul class="contents">{contents}</ul></nav>
{body}""",
        styles=["run.css"],
        scripts=["page.js"],
    )


def _summary(parts: RunParts) -> Mapping[str, object]:
    return {} if parts.record is None else parts.record.summary


def _title(parts: RunParts) -> str:
    kept = fmt.open_edges(_summary(parts))
    return "The story of a run" if kept == fmt.MISSING else kept


def _headline(parts: RunParts) -> str:
    summary = _summary(parts)
    tiles = []
    if parts.record is not None:
        edges = f"{fmt.edge_share(summary)}; {fmt.edges_at_start(summary)} at the start"
        tiles.append(("Open edges per query and head", fmt.decimal(summary.get("edges_per_query"), 2), edges, ""))
        value, tolerance = fmt.constraint_value(summary), summary.get("tolerance")
        name = fmt.CONSTRAINT_NAMES.get(fmt.constraint_kind(summary) or "", "constraint")
        tiles.append(("Constraint", fmt.decimal(value), f"{name}; tolerance {fmt.decimal(tolerance)}", ""))
    for level in LEVELS if parts.circuits else ():
        ratios = all_ratios(parts.circuits, level)
        label = f"{PLURAL[level].capitalize()} in the sparse model's circuits"
        tiles.append((label, ratio_range(ratios), "than the base, by task", tile_class(ratios)))
    for one in parts.graphs:
        words = "of the attention attribution, mean over prompts"
        tiles.append(("Heads for 80 %", heads_words(one.summary), words, ""))
    cells = "".join(
        f'<div><dt>{escape(a)}</dt><dd class="{css}">{escape(b)}<small>{escape(c)}</small></dd></div>'
        for a, b, c, css in tiles
    )
    model = fmt.visible(summary.get("model") or parts.run_dir.name)
    return (
        f'<p class="eyebrow"><bdi>{escape(model)}</bdi> · run {text(parts.run_dir.name)}</p>'
        f"<h1>{escape(_title(parts))}</h1>" + (f'<dl class="tiles">{cells}</dl>' if tiles else "")
    )


def _sections(parts: RunParts, out: Path, plots: Mapping[str, bytes]) -> list[tuple[str, str, str]]:
    """(id, title, HTML) of each section; what is missing says how it is made."""

    def inside(*names: str) -> str:
        return shlex.quote(str(parts.run_dir.joinpath(*names)))

    model = inside("model")
    training = missing(
        "This run has not ended: its record is not written yet.",
        f"python main.py fit --config {inside('config.yaml')} --on_existing resume",
    )
    edges = "<p>They come with the record of the run.</p>"
    if parts.record is not None:
        training, edges = _training(parts.record, plots), _edges(parts.record, plots)
    return [
        ("training", "Training", training),
        ("edges", "Edges", edges),
        ("abilities", "What the sparse model still knows", evaluation_section(parts.evaluations) or missing(
            "There is no evaluation on tasks.",
            f"python main.py evaluate --model {model} --tasks agreement,addition --out {inside('evaluation')}",
        )),
        ("circuits", "Circuits", circuits_section(parts.circuits, out) or missing(
            "There is no comparison of task circuits.",
            f"python main.py circuits --model {model} --task all --out {inside('circuits')}",
        )),
        ("transcoders", "Transcoders", transcoders_section(parts.transcoders) if parts.transcoders else missing(
            "There are no transcoders.",
            "python main.py fit --config configs/transcoder_smollm2.yaml "
            f"--model.init_args.model {model} --run_dir {inside('transcoder')}",
        )),
        ("graphs", "Attribution graphs", graphs_section(parts.graphs, out) or missing(
            "There are no attribution graphs.",
            f"python main.py graph --model {model} --transcoders {inside('transcoder', 'transcoder')} "
            f'--prompt "The opposite of hot is" --out {inside("graphs")}',
        )),
    ]  # fmt: skip


def _training(record: RunRecord, plots: Mapping[str, bytes]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td>{text(value)}</td></tr>'
        for label, value in fmt.summary_rows(record.summary)
    )
    alt = "Curves over training steps: cross-entropy, the constraint, its multiplier, and the share of open edges."
    caption = "In training the gates are drawn at random; on the validation split they are deterministic."
    return (
        f"<p>Measured on the test split; the curves show the validation split.</p><table><tbody>{rows}</tbody></table>"
        + _figure(plots, "training.png", alt, caption)
    )


def _edges(record: RunRecord, plots: Mapping[str, bytes]) -> str:
    alt = "Two heat maps of layers by heads: the share of each head's edges that are open, before and after training."
    caption = "Open edges of every head before and after training, on the test split, logarithmic colours."
    html = _figure(plots, "edges.png", alt, caption)
    return html if record.example is None else html + explorer(record.example)


def _figure(plots: Mapping[str, bytes], name: str, alt: str, caption: str) -> str:
    if name not in plots:
        return ""
    data = base64.b64encode(plots[name]).decode()
    return (
        f'<figure><div class="pan"><img src="data:image/png;base64,{data}" alt="{escape(alt)}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
