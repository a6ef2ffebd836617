"""`python main.py report --run DIR`: the whole story of a run in one page.

Joins training, edges, evaluation, circuits, transcoders and attribution graphs, as far as they are there, and says how
to make what is not. Folders are found in the run's own unless they are named; each option takes several.
"""

from collections.abc import Sequence
from pathlib import Path

from lit_sparse.commands.parser import CommandParser
from lit_sparse.common.files import check_writable
from lit_sparse.report.run.story import PAGE, write_run_report


def report_command(args: Sequence[str]) -> None:
    """Writes the page.

    Raises:
        ValueError: no such run, or a named folder without what it should hold.
    """
    parsed = _parser().parse_args(list(args))
    out = Path(parsed.run) / PAGE if parsed.out is None else Path(parsed.out)
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name the HTML file to write")
    check_writable(out.parent)
    path = write_run_report(
        parsed.run,
        out,
        circuits=parsed.circuits,
        transcoders=parsed.transcoders,
        graphs=parsed.graphs,
    )
    print(f"page: {path}")


def _parser() -> CommandParser:
    parser = CommandParser(prog="main.py report", description=__doc__)
    parser.add_argument("--run", type=str, required=True, help="the folder of a run (its run_dir)")
    parser.add_argument("--circuits", type=str, nargs="+", default=[], help="folders of the command circuits")
    parser.add_argument("--transcoders", type=str, nargs="+", default=[], help="transcoder folders, or their runs")
    parser.add_argument("--graphs", type=str, nargs="+", default=[], help="folders of the command graph")
    parser.add_argument("--out", type=str | None, default=None, help=f"the HTML file; default: {PAGE} in --run")
    return parser
