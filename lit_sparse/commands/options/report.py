"""Options of the command report."""

from pathlib import Path

from jsonargparse import Namespace

from lit_sparse.commands.command import OptionsCommand
from lit_sparse.commands.parser import CommandParser


def _add(parser: CommandParser) -> None:
    parser.add_argument("--run", type=str, required=True, help="folder of a run (its run_dir)")
    parser.add_argument("--circuits", type=str, nargs="+", default=[], help="folders of the command circuits")
    parser.add_argument("--transcoders", type=str, nargs="+", default=[], help="transcoder folders, or their runs")
    parser.add_argument("--graphs", type=str, nargs="+", default=[], help="folders of the command graph")
    parser.add_argument("--out", type=str | None, default=None, help="HTML file; default: report.html of the run")


def _check(parsed: Namespace) -> None:
    if parsed.out is not None and Path(parsed.out).is_dir():
        raise ValueError(f"--out {parsed.out} is a folder; name the HTML file to write")


COMMAND = OptionsCommand(
    name="report",
    summary="all that is known of a run on one page",
    description=(
        "Joins training, edges, evaluation, circuits, transcoders and graphs, as far as they exist, and says how to "
        "make the rest. It looks for these in the run's folder; the options name others."
    ),
    example="lit-sparse report --run runs/quickstart",
    add_options=_add,
    check=_check,
    run="lit_sparse.commands.report:report_command",
)
