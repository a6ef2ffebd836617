"""The report of a run, section by section: each function gives the HTML of one, all text from files escaped."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lit_sparse.common.formatting import MISSING, count, decimal, duration, percent, signed, visible, visible_token
from lit_sparse.records.graph_summary import GraphSummary, ModelSpread, PromptsSummary, Spread
from lit_sparse.records.run_parts import Circuits, Graphs, Transcoders
from lit_sparse.report.circuits.values import (
    LEVELS,
    SIDES,
    entry,
    headline_share,
    interval,
    ratios,
    size,
    smaller,
    times,
)

Row = Sequence[str]


def table(head: Sequence[str], rows: Sequence[Row]) -> str:
    """A table that scrolls where it is too wide; the cells of `rows` are HTML, the first one heads its row."""
    heads = "".join(f'<th scope="col">{escape(one)}</th>' for one in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table class="numbers"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def missing(what: str, command: str) -> str:
    """That a part is not there, and the command that makes it."""
    return f'<p class="missing">{escape(what)} To make it:</p><pre><code>{escape(command)}</code></pre>'


def text(value: object, width: int | None = None) -> str:
    """Text from a file as HTML, set apart from what surrounds it."""
    shown = visible(value)
    return f"<bdi>{escape(shown if width is None or len(shown) <= width else shown[: width - 1] + '…')}</bdi>"


def link(target: Path, out: Path, words: str) -> str:
    """A link from the page `out` to a file, by relative path."""
    relative = Path(os.path.relpath(target.resolve(), out.resolve().parent)).as_posix()
    # Without the dot a first part with a colon would read as a scheme.
    return f'<a href="./{quote(relative)}">{words}</a>'


def evaluation_section(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Tasks and text, of the sparse model beside the base."""
    return "".join(_evaluation(one) for one in evaluations)


def _evaluation(record: Mapping[str, Any]) -> str:
    rows = []
    for task in record["tasks"]:
        name = f"{text(task['task'])} <small>{text(task['metric'])}</small>"
        cells = [_estimate(task[key]) for key in ("base", "model")] + [_estimate(task["difference"], sign=True)]
        rows.append((name, *cells, percent(task["chance"])))
    words = record.get("text")
    if words:
        # Cross-entropy is in nats, not a share.
        cells = [_estimate(words[key], share=False) for key in ("base_ce", "ce")]
        cells.append(_estimate(words["difference"], share=False, sign=True))
        rows.append(("Cross-entropy <small>nats per token</small>", *cells, MISSING))
    note = "" if record.get("complete", True) else '<p class="missing">This evaluation is not complete.</p>'
    head = ("Task", "Base", "Sparse", "Difference", "Chance")
    against = text(record["against"]) if record.get("against") else "no base model"
    return f"<p>{text(record['model'])} against {against}.</p>{note}{table(head, rows)}"


def _estimate(found: Mapping[str, Any] | None, share: bool = True, sign: bool = False) -> str:
    if found is None or found.get("value") is None:
        return MISSING
    factor, digits = (100, 1) if share else (1, 3)
    show = signed if sign else decimal
    spread = f" <small>± {decimal(factor * found['stderr'], digits)}</small>" if found.get("stderr") is not None else ""
    return f"{show(factor * found['value'], digits)}{' %' if share else ''}{spread}"


def circuits_section(found: Sequence[Circuits], out: Path) -> str:
    """How many heads and edges keep the headline share of each task's effect."""
    return "".join(_circuits(one, out) for one in found)


def _circuits(one: Circuits, out: Path) -> str:
    details, share = one.details, headline_share(one.details)
    rows = []
    for task in details["tasks"]:
        cells = [text(task["task"])]
        for level in LEVELS:
            row = entry(one.comparison, task["task"], level, share)
            css = {True: "yes", False: "no", None: ""}[smaller(row)]
            cells += [size(row.get(side)) for side in SIDES]
            cells.append(f'<b class="{css}">{times(row.get("ratio"))}</b> <small>{escape(interval(row))}</small>')
        rows.append(cells)
    head = ["Task"]
    for level in ("Heads", "Edges"):
        head += [f"{level}, base", "sparse", "ratio"]
    names = " against ".join(text(details["models"][side]["name"]) for side in SIDES)
    page = one.folder / "circuits.html"
    more = f"<p>{link(page, out, 'The circuits, to explore')}</p>" if page.is_file() else ""
    return (
        f"<p>The smallest circuits that keep {percent(share)} of each task's effect, {names}. "
        "Coloured where the ratio's interval leaves out 1.</p>" + table(head, rows) + more
    )


def all_ratios(found: Sequence[Circuits], level: str) -> list[float]:
    """The ratios base / sparse of all comparisons, ascending."""
    return sorted(ratio for one in found for ratio in ratios(one.details, one.comparison, level))


def transcoders_section(found: Sequence[Transcoders]) -> str:
    """What each transcoder reproduces; the columns are transcoders."""
    rows = [
        ["Model", *(text(one.summary.get("model") or MISSING) for one in found)],
        ["Kind", *(_transcoder_kind(one.summary) for one in found)],
    ]
    for label, key, show in (
        ("Features a layer", "features", count),
        ("Training tokens", "tokens", count),
        ("Training time", "seconds", duration),
        ("Active features per layer and token (L0)", "l0", lambda value: decimal(value, 1)),
        ("Explained variance", "explained_variance", percent),
        ("Features that never fire", "dead_fraction", percent),
        ("Model's cross-entropy", "ce", decimal),
        ("… with transcoders for all MLPs", "replacement_ce", decimal),
        ("… with the MLPs' mean outputs", "mean_ablation_ce", decimal),
    ):
        rows.append([label, *(show(one.summary.get(key)) for one in found)])
    return (
        "<p>Transcoders stand in for the MLPs, so that what these do can be read as features. Measured on held-out "
        "text; cross-entropy in nats per token.</p>" + table(["", *(visible(one.name) for one in found)], rows)
    )


def _transcoder_kind(summary: Mapping[str, Any]) -> str:
    kinds = {True: "cross-layer", False: "layer by layer"}
    return f"{kinds.get(bool(summary.get('cross_layer')))}, {text(summary.get('activation') or MISSING)}"


def graphs_section(found: Sequence[Graphs], out: Path) -> str:
    """Heads for 80 % over prompts, and each prompt with a link to its explorer."""
    return "".join(_graphs(one, out) for one in found)


def _graphs(one: Graphs, out: Path) -> str:
    summary = one.summary
    lead = f"<p>{len(summary.prompts)} prompt{'s' if len(summary.prompts) > 1 else ''}."
    if summary.fewer_heads is not None:
        ratio = summary.fewer_heads
        lead += (
            f" 80 % of the attention attribution comes from <b>{times(ratio.mean)}</b> heads in "
            f"{kind(summary.models[0])} than in {kind(summary.models[1])} (mean over prompts; from {times(ratio.min)} "
            f"to {times(ratio.max)})."
        )
    if summary.fewer_heads_by_connection is not None:
        lead += f" Between two positions, it comes from <b>{times(summary.fewer_heads_by_connection.mean)}</b>."
    head = ["Mean ± standard deviation", *(_column(model).capitalize() for model in summary.models)]
    labels = (
        ("heads_for_80", "Heads for 80 % of the attention attribution", 1),
        ("heads_for_80_by_connection", "The same between two positions, mean over pairs", 1),
        ("heads_for_80_by_influence", "Heads for 80 % of the heads' influence", 1),
        ("nodes", "Nodes", 0),
        ("links", "Links", 0),
        ("replacement_error", "Replacement error", 3),
        ("explained_variance", "Explained variance on the prompt", 3),
        ("seconds", "Seconds", 1),
    )
    rows = [
        [label, *(_spread(model.measured.get(key), digits) for model in summary.models)]
        for key, label, digits in labels
        if any(key in model.measured for model in summary.models)
    ]
    return f"{lead}</p>{table(head, rows)}{_prompts(one, out)}"


def _prompts(one: Graphs, out: Path) -> str:
    columns = [f"Heads for 80 %, {_column(model)}" for model in one.summary.models]
    rows = []
    for prompt in one.summary.prompts:
        words = text(prompt.prompt, 90)
        page = None if prompt.page is None else (one.folder / prompt.page)
        # Only pages of this folder: a summary from elsewhere shall not lead anywhere else.
        if page is not None and page.is_file() and page.resolve().is_relative_to(one.folder.resolve()):
            words = link(page, out, words)
        answer = MISSING if prompt.answer is None else f"<bdi>{escape(visible_token(prompt.answer, 20))}</bdi>"
        sides: list[GraphSummary | None] = [prompt, prompt.against][: len(columns)]
        rows.append([words, answer, *(MISSING if side is None else count(side.heads_for_80) for side in sides)])
    body = table(["Prompt", "Answer", *columns], rows)
    return body if len(rows) <= 12 else f"<details><summary>All {len(rows)} prompts</summary>{body}</details>"


def kind(model: ModelSpread) -> str:
    """What a model is called: the sparse or the dense one."""
    return {True: "the sparse model", False: "the dense model", None: "the model"}[model.sparse]


def _column(model: ModelSpread) -> str:
    return kind(model).removeprefix("the ")


def heads_words(summary: PromptsSummary) -> str:
    """Heads for 80 % by model: 5 against 41."""
    found = [model.measured["heads_for_80"].mean for model in summary.models if "heads_for_80" in model.measured]
    return " against ".join(f"{mean:.3g}" for mean in found) or MISSING


def _spread(found: Spread | None, digits: int) -> str:
    if found is None:
        return MISSING
    return f"{found.mean:,.{digits}f} <small>± {found.std:,.{digits}f}</small>"
