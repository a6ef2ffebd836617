"""Records as views in a Jupyter cell: their pages in frames of their own, and small tables."""

from lit_sparse.report.notebook.view import View, notebook_html, side_by_side

__all__ = ["View", "notebook_html", "side_by_side"]
