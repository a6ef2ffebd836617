"""End of a run: evaluation, export, plots and summary."""
