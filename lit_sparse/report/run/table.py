"""The summary as a table in the terminal."""

from rich import box
from rich.table import Table
from rich.text import Text

from lit_sparse.records.run_summary import RunSummary
from lit_sparse.report.run.wording import summary_rows

ASCII = str.maketrans({"→": "->", "≤": "<=", "…": "..."})  # the report has to survive a log file in any encoding


def summary_table(summary: RunSummary) -> Table:
    """The summary of a run for `rich.print`, 80 columns wide at most."""
    title = "Sparse post-training, measured on the test split"
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title=title, title_justify="left", width=80)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for label, value in summary_rows(summary):
        # Text, not str: a model named "[red]x" is a name, not markup.
        cell = Text(value.translate(ASCII))
        if label == "Constraint satisfied":
            cell.stylize({"yes": "bold green", "no": "bold red"}.get(value, "yellow"))
        table.add_row(Text(label.translate(ASCII)), cell)
    return table
