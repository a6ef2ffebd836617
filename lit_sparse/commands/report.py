"""The command report: all that is known of a run on one page."""

from pathlib import Path

from jsonargparse import Namespace

from lit_sparse.common.files import check_writable
from lit_sparse.report.run.story import PAGE, write_run_report


def report_command(parsed: Namespace) -> None:
    """Writes the page.

    Raises:
        ValueError: no such run, or a named folder without what it should hold.
    """
    out = Path(parsed.run) / PAGE if parsed.out is None else Path(parsed.out)
    check_writable(out.parent)
    path = write_run_report(
        parsed.run,
        out,
        circuits=parsed.circuits,
        transcoders=parsed.transcoders,
        graphs=parsed.graphs,
    )
    print(f"page: {path}")
