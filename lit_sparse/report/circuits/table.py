"""A comparison of circuits as a table in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from lit_sparse.common.formatting import MISSING, number, percent, visible
from lit_sparse.report.circuits.values import (
    LEVELS,
    SIDES,
    Comparison,
    Details,
    attention_edges,
    entry,
    interval,
    score_words,
    size,
    smaller,
    times,
)

WIDTH = 80
COLOURS = {True: "bold green", False: "bold red", None: "bold"}


def circuits_table(comparison: Comparison, details: Details) -> Table:
    """Heads and edges that keep each share of the effect, for `rich.print`, 80 columns wide at most.

    Args:
        comparison: the content of comparison.json.
        details: the content of circuits.json.
    """
    models = details["models"]
    names = (f"{side}: {visible(models[side]['name'])}" for side in SIDES)
    caption = (
        f"{visible(details['method'])}, {visible(details['ablation'])} ablation, {details['prompts']} prompts a seed, "
        f"seeds: {len(details['seeds'])}. attn: open attention edges of a prompt inside the circuit of heads. "
        "A dash: the share is not reached."
    )
    table = Table(
        box=None, show_header=False, width=WIDTH, padding=0,
        title=Text("Circuits, base against sparse", style="bold"), title_justify="left",
        caption=Text(caption), caption_justify="left",
    )  # fmt: skip
    table.add_column(overflow="fold")
    table.add_row(Text("\n".join(names), style="dim"))
    for task in details["tasks"]:
        table.add_row("")
        table.add_row(_heading(task))
        if task["skipped"]:
            table.add_row(Text(f"  not measured: {visible(task['skipped'])}", style="yellow"))
        else:
            table.add_row(_sizes(comparison, details, task))
    return table


def _heading(task: Mapping[str, Any]) -> Text:
    scores = [f"{what} {a} -> {b}" for what, a, b in score_words(task) if (a, b) != (MISSING, MISSING)]
    return Text.assemble((visible(task["task"]), "bold"), ("   " + "   ".join(scores), "dim"))


def _sizes(comparison: Comparison, details: Details, task: Mapping[str, Any]) -> Table:
    """One row a share: base, sparse, ratio over its interval for heads and edges; base and sparse for attention."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("\neffect", justify="right", width=6)
    for level, wide in (("heads", 5), ("edges", 6)):
        table.add_column(f"{level}\nbase", justify="right", width=wide)
        table.add_column("\nsparse", justify="right", width=6)
        table.add_column("\nratio", justify="right", width=12)
    table.add_column("attn\nbase", justify="right", width=6)
    table.add_column("\nsparse", justify="right", width=6)
    for share in details["shares"]:
        cells = [Text(percent(share))]
        for level in LEVELS:
            row = entry(comparison, task["task"], level, share)
            cells += [Text(_short(row.get(side))) for side in SIDES]
            ratio = (times(row.get("ratio")), COLOURS[smaller(row)])
            cells.append(Text.assemble(ratio, (f"\n{interval(row)}" if interval(row) else "", "dim")))
        cells += [Text(_short(attention_edges(task, side, share))) for side in SIDES]
        table.add_row(*cells)
    return table


def _short(value: object) -> str:
    """A size in at most 6 characters: 402, 12,345, 534k, 1.23M."""
    found = number(value)
    if found is None or found < 1e5:
        return size(found)
    return f"{found / 1e3:.0f}k" if found < 1e6 else f"{found / 1e6:.3g}M"
