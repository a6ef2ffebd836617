"""Plots, pages and tables for people, each made from records alone.

record = RunRecord.load("runs/quickstart/record")
write_plots(record, "runs/quickstart/plots")
write_page(record, "runs/quickstart/report.html")
rich.print(summary_table(record.summary))
"""
