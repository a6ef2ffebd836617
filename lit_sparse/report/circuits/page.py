"""A comparison of circuits as one HTML file: works offline, loads nothing, escapes all text from outside."""

import base64
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from lit_sparse.common.files import write_atomically
from lit_sparse.common.formatting import MISSING, decimal, edge_share, number, percent, visible
from lit_sparse.report.circuits.explorer import circuits_explorer
from lit_sparse.report.circuits.values import (
    LEVELS,
    PLURAL,
    SIDES,
    Comparison,
    Details,
    attention_edges,
    entry,
    headline_share,
    interval,
    measured,
    ratio_range,
    ratios,
    score_words,
    size,
    smaller,
    tile_class,
    times,
)
from lit_sparse.report.shared.frame import html_page


def write_circuits_page(
    details: Details, comparison: Comparison, path: str | os.PathLike[str], plots: Mapping[str, bytes]
) -> Path:
    """Write the page of a comparison and give its path.

    Args:
        details: the content of circuits.json.
        comparison: the content of comparison.json.
        path: the HTML file, replaced whole if it exists.
        plots: PNG by file name as from `render_circuits`; ratios and curves go into the page.
    """
    path = Path(path)
    write_atomically(path, circuits_html(details, comparison, plots).encode())
    return path


def circuits_html(details: Details, comparison: Comparison, plots: Mapping[str, bytes]) -> str:
    """The page as text."""
    names = " against ".join(f"<bdi>{_text(details['models'][side]['name'])}</bdi>" for side in SIDES)
    body = [
        _headline(details, comparison, names),
        "<h2>How small the circuits are</h2>" + _sizes(details, comparison),
        _more(details),
        circuits_explorer(details),
        _plots(details, comparison, plots),
        "<h2>What the words mean</h2>" + _terms(details),
    ]
    return html_page(
        "Circuits, base against sparse",
        "".join(body),
        styles=["circuits.css"],
        scripts=["circuits_reads.js", "circuits.js"],
    )


def _text(value: object) -> str:
    return escape(visible(value))


def _headline(details: Details, comparison: Comparison, names: str) -> str:
    share = percent(headline_share(details))
    tiles = []
    for level in LEVELS:
        found = ratios(details, comparison, level)
        more = f"than the base, for {share} of the effect; tasks: {len(found)} of {len(details['tasks'])}"
        tiles.append(
            (
                f"{PLURAL[level].capitalize()} in the sparse model's circuits",
                ratio_range(found),
                more,
                tile_class(found),
            )
        )
    sparse = details["models"]["sparse"]
    tiles.append(("Open edges per query and head", decimal(sparse.get("edges_per_query"), 2), edge_share(sparse), ""))
    cells = "".join(f'<div><dt>{a}</dt><dd class="{css}">{b}<small>{c}</small></dd></div>' for a, b, c, css in tiles)
    how = f"{_text(details['method'])}, {_text(details['ablation'])} ablation"
    return (
        f'<p class="eyebrow">{names}</p><h1>Circuits, base against sparse</h1>'
        f"<p>How many heads and edges each model needs to keep its behaviour on a task: {how}, "
        f"{details['prompts']} prompts a seed, seeds: {', '.join(map(str, details['seeds']))}.</p>"
        f'<dl class="tiles">{cells}</dl>'
    )


def _sizes(details: Details, comparison: Comparison) -> str:
    """The table: one group of rows a task, one row a share of the effect."""
    columns = "".join(f'<th scope="col">{name}</th>' for name in ("Base", "Sparse", "Ratio") * 2 + ("Base", "Sparse"))
    groups = "".join(_group(details, comparison, task) for task in details["tasks"])
    return (
        '<div class="scroll"><table class="sizes"><thead><tr><td></td><th colspan="3" scope="colgroup">Heads</th>'
        '<th colspan="3" scope="colgroup">Edges</th><th colspan="2" scope="colgroup">Open attention edges</th></tr>'
        f'<tr><th scope="col">Effect kept</th>{columns}</tr></thead>{groups}</table></div>'
        '<p class="soft">Mean over seeds; the ratio with its interval, coloured where that leaves out 1. A dash: not '
        "every seed reaches the share, or (a ratio) nothing is needed for it. Open attention edges: per prompt, inside "
        "the circuit of heads.</p>"
    )


def _group(details: Details, comparison: Comparison, task: Mapping[str, Any]) -> str:
    scores = " · ".join(f"{what} {a} → {b}" for what, a, b in score_words(task) if (a, b) != (MISSING, MISSING))
    head = (
        f'<tbody><tr class="task"><th colspan="9" scope="rowgroup"><b>{_text(task["task"])}</b> '
        f"<span>{_text(task['description'])}</span><small>{scores}</small></th></tr>"
    )
    if task["skipped"]:
        return f'{head}<tr><td colspan="9" class="skipped">Not measured: {_text(task["skipped"])}</td></tr></tbody>'
    rows = []
    for share in details["shares"]:
        cells = [f'<th scope="row">{percent(share)}</th>']
        for level in LEVELS:
            row = entry(comparison, task["task"], level, share)
            css = {True: "yes", False: "no", None: ""}[smaller(row)]
            cells += [f"<td>{size(row.get(side))}</td>" for side in SIDES]
            cells.append(
                f'<td class="ratio"><b class="{css}">{times(row.get("ratio"))}</b> <small>{interval(row)}</small></td>'
            )
        cells += [f"<td>{size(attention_edges(task, side, share))}</td>" for side in SIDES]
        css = ' class="headline"' if share == headline_share(details) else ""
        rows.append(f"<tr{css}>{''.join(cells)}</tr>")
    return f"{head}{''.join(rows)}</tbody>"


def _more(details: Details) -> str:
    """Abilities by template, and the areas under the curves."""
    templates, areas = [], []
    for task in measured(details):
        for side in SIDES:
            model = task[side] or {"templates": {}, "runs": []}
            for name, template in model["templates"].items():
                scores = (template["prompts"], percent(template["accuracy"]), decimal(template["clean"], 2))
                templates.append(_cells(task["task"], side, name, *scores))
            means = (_mean(model["runs"], *what) for what in (("edge", "cpr"), ("edge", "cmd")))
            areas.append(_cells(task["task"], side, *means))
    return (
        "<details><summary>By template, and CPR and CMD</summary>"
        + _plain(("Task", "Model", "Template", "Prompts", "Accuracy", "Log-odds"), templates)
        + _plain(("Task", "Model", "CPR, edges", "CMD, edges"), areas)
        + "</details>"
    )


def _mean(runs: list[Mapping[str, Any]], level: str, name: str) -> str:
    found = [value for run in runs if (value := number(run[level][name])) is not None]
    return decimal(sum(found) / len(found)) if found else MISSING


def _cells(*values: object) -> str:
    return "".join(f"<td>{_text(value)}</td>" for value in values)


def _plain(names: tuple[str, ...], rows: list[str]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table class="plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _plots(details: Details, comparison: Comparison, plots: Mapping[str, bytes]) -> str:
    share = percent(headline_share(details))
    ranges = "; ".join(f"{PLURAL[level]} {ratio_range(ratios(details, comparison, level))}" for level in LEVELS)
    alt = f"The sparse model's circuits against the base model's, by task: {ranges}."
    caption = (
        f"Ratios at {share} of the effect with their intervals; right of the dashed line the sparse model's circuit is "
        "the smaller one. No ratio: a model does not reach the share, or needs nothing for it."
    )
    figures = [("ratios.png", alt, caption)]
    for task in measured(details):
        kept = []
        for level in LEVELS:
            row = entry(comparison, task["task"], level, headline_share(details))
            base, sparse = (size(row.get(side)) for side in SIDES)
            kept.append(f"{base} {PLURAL[level]} in the base model and {sparse} in the sparse one")
        alt = f"Faithfulness over circuit size on {visible(task['task'])}. {share} is kept by {'; '.join(kept)}."
        caption = (
            "One thin line a seed, their mean bold; the dots are the smallest circuits that keep "
            f"{share} of the effect, mean over seeds."
        )
        figures.append((f"{task['task']}_curves.png", alt, caption))
    drawn = "".join(_figure(plots[name], alt, caption) for name, alt, caption in figures if name in plots)
    return f"<h2>Ratios and curves</h2>{drawn}" if drawn else ""


def _figure(png: bytes, alt: str, caption: str) -> str:
    data = base64.b64encode(png).decode()
    return (
        f'<figure class="plot"><div class="pan"><img src="data:image/png;base64,{data}" alt="{escape(alt)}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _terms(details: Details) -> str:
    instead = "the corrupted prompt" if details["ablation"] == "patch" else "the mean over corrupted prompts"
    terms = {
        "Edge": "What one component (the embedding, a head, an MLP) writes into one input of a later one (a head's "
        "queries, keys or values, an MLP, the logits). An attention edge is another thing: one head's path between "
        "two tokens.",
        "Effect, faithfulness": "How far the log-odds of right against wrong answers come back from their value with "
        f"everything replaced by activations of {instead}: 0 % there, 100 % with the whole model.",
        "Size": "Ranked by score, the smallest number of heads or edges that keeps the share of the effect, everything "
        "else replaced, such that every larger number does too. A circuit of heads also has all MLPs.",
        "Score": "The change of the log-odds when the edge carries the corrupted prompt's activation: negative where "
        "the edge speaks for the right answer, positive where it speaks against it. A node's score is the sum over "
        "those edges in this page that it writes, for the logits that it reads.",
        "CPR, CMD": "Area under faithfulness, and under its distance from 1, over the fraction of edges kept (MIB, "
        "arXiv 2504.13151).",
    }
    rows = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in terms.items())
    return f'<dl class="terms">{rows}</dl>'
