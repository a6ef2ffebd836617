"""A comparison of circuits as a table in the terminal."""

from rich import box
from rich.table import Table
from rich.text import Text

from lit_sparse.common.formatting import percent, visible
from lit_sparse.records.circuits import LEVELS, SIDES, Comparison, TaskResult
from lit_sparse.report.circuits.values import Kept, attention_edges, score_words, size

WIDTH = 80
COLOURS = {True: "bold green", False: "bold red", None: "bold"}


def circuits_table(found: Comparison) -> Table:
    """Heads and edges that keep each share of the effect, for `rich.print`, 80 columns wide at most."""
    result = found.result
    names = (f"{side}: {visible(name)}" for side, name in zip(SIDES, result.names, strict=True))
    caption = (
        f"{visible(result.method)}, {visible(result.ablation)} ablation, {result.prompts} prompts a seed, "
        f"seeds: {len(result.seeds)}. attn: open attention edges of a prompt inside the circuit of heads. "
        "A dash: the share is not reached."
    )
    table = Table(
        box=None, show_header=False, width=WIDTH, padding=0,
        title=Text("Circuits, base against sparse", style="bold"), title_justify="left",
        caption=Text(caption), caption_justify="left",
    )  # fmt: skip
    table.add_column(overflow="fold")
    table.add_row(Text("\n".join(names), style="dim"))
    for task in result.tasks:
        table.add_row("")
        table.add_row(_heading(task))
        if task.skipped is not None:
            table.add_row(Text(f"  not measured: {visible(task.skipped)}", style="yellow"))
        else:
            table.add_row(_sizes(found, task))
    return table


def _heading(task: TaskResult) -> Text:
    scores = [f"{what} {a} -> {b}" for what, a, b in score_words(task)]
    return Text.assemble((visible(task.task), "bold"), ("   " + "   ".join(scores), "dim"))


def _sizes(found: Comparison, task: TaskResult) -> Table:
    """One row a share: base, sparse, ratio over its interval for heads and edges; base and sparse for attention."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("\neffect", justify="right", width=6)
    for level, wide in (("heads", 5), ("edges", 6)):
        table.add_column(f"{level}\nbase", justify="right", width=wide)
        table.add_column("\nsparse", justify="right", width=6)
        table.add_column("\nratio", justify="right", width=12)
    table.add_column("attn\nbase", justify="right", width=6)
    table.add_column("\nsparse", justify="right", width=6)
    for share in found.result.shares:
        cells = [Text(percent(share))]
        for level in LEVELS:
            row, kept = found.row(task.task, level, share), Kept.of(found, task.task, level, share)
            cells += [Text(_short(row.of(side) if row else None)) for side in SIDES]
            under = f"\n{kept.interval}" if kept.interval else ""
            cells.append(Text.assemble((kept.ratio, COLOURS[kept.smaller]), (under, "dim")))
        cells += [Text(_short(attention_edges(task, side, share))) for side in SIDES]
        table.add_row(*cells)
    return table


def _short(found: float | None) -> str:
    """A size in at most 6 characters: 402, 12,345, 534k, 1.23M."""
    if found is None or found < 1e5:
        return size(found)
    return f"{found / 1e3:.0f}k" if found < 1e6 else f"{found / 1e6:.3g}M"
