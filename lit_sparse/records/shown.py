"""Records that a Jupyter cell shows as a view, not as text."""

from lit_sparse.common.late import lent


class Shown:
    """A record with a view of its own: `lit_sparse.report.notebook.view`, which knows records and no models."""

    def __str__(self) -> str:  # pydantic's would list every field
        return repr(self)

    def _repr_html_(self) -> str:
        """The view as HTML, for Jupyter."""
        html: str = lent("notebook_html")(self)
        return html
