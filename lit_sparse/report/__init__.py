"""What a run leaves for people: a record, three plots, one HTML page and a table for the terminal.

Everything here is made from a `RunRecord`, which needs neither the model nor torch once it is saved:

    record = RunRecord.load("runs/quickstart")
    write_plots(record, "runs/quickstart/plots")
    write_page(record, "runs/quickstart/report.html")
    rich.print(summary_table(record.summary))
"""

from lit_sparse.report.attention_maps import attention_example
from lit_sparse.report.page import write_page
from lit_sparse.report.plots import edges_by_head, render_plots, training_curves, write_plots
from lit_sparse.report.record import AttentionExample, RunRecord, read_history
from lit_sparse.report.table import summary_table

__all__ = [
    "AttentionExample",
    "RunRecord",
    "attention_example",
    "edges_by_head",
    "read_history",
    "render_plots",
    "summary_table",
    "training_curves",
    "write_page",
    "write_plots",
]
