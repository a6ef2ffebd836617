"""Tables of the results in the terminal. 80 columns are enough unless names are long."""

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lit_sparse.common.formatting import MISSING, count, decimal, percent, signed, visible
from lit_sparse.downstream.scores import perplexity
from lit_sparse.records.evaluation import Estimate, TaskComparison, TextScore


def tasks_table(rows: Sequence[TaskComparison], labels: tuple[str, str | None]) -> Group:
    """Table with one row per metric. A difference of more than two standard errors is coloured.

    Args:
        labels: names of the model and its base. If the base is None, its columns are left out.
    """
    model, base = labels
    table = _table()
    table.add_column("task", overflow="fold")
    table.add_column("metric", overflow="fold")
    for heading in ("n", "chance", *([base] if base else []), model, *([f"{model} - {base}"] if base else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        compared = [_cell(row.base)] if base else []
        differs = [_difference(row)] if base else []
        table.add_row(
            Text(visible(row.task)),
            Text(visible(row.metric)),
            count(row.questions),
            decimal(row.chance, 2),
            *compared,
            _cell(row.model),
            *differs,
        )
    return Group(Text("Tasks, standard errors in brackets"), table)


def text_table(score: TextScore, labels: tuple[str, str | None]) -> Group:
    """Table of perplexity, cross-entropy, KL and edges on one text."""
    model, base = labels
    title = (
        f"Text, {score.tokens:,} tokens in {score.sequences} sequences of {score.sequence_length}, standard errors in "
        "brackets"
    )
    table = _table()
    table.add_column("")
    for heading in [*([base] if base else []), model, *([f"{model} - {base}"] if base else [])]:
        table.add_column(heading, justify="right", no_wrap=True)

    def add(label: str, of_base: str, of_model: str, difference: str = "") -> None:
        table.add_row(label, *([of_base, of_model, difference] if base else [of_model]))

    base_perplexity = perplexity(score.base_ce) if score.base_ce is not None else None
    add("perplexity", _cell(base_perplexity, 2), _cell(perplexity(score.ce), 2))
    add("CE, nats/token", _cell(score.base_ce), _cell(score.ce), _cell(score.difference, sign=True))
    if score.kl is not None:
        add(f"KL({base} || {model}), nats/token", "", "", _cell(score.kl, 4))
    if score.edge_fraction is not None:
        add("open edges per query and head", "", decimal(score.edges_per_query, 2))
        add("share of the allowed edges", "", percent(score.edge_fraction))
    return Group(Text(title), table)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _cell(estimate: Estimate | None, digits: int = 3, sign: bool = False) -> str:
    if estimate is None:
        return MISSING
    value = (signed if sign else decimal)(estimate.value, digits)
    return value if estimate.stderr is None else f"{value} ({decimal(estimate.stderr, digits)})"


def _difference(row: TaskComparison) -> Text:
    cell = Text(_cell(row.difference, sign=True))
    if row.difference is not None and row.difference.stderr and row.higher_is_better is not None:
        value, stderr = row.difference
        if stderr is not None and abs(value) > 2 * stderr:
            cell.stylize("bold green" if (value > 0) == row.higher_is_better else "bold red")
    return cell
