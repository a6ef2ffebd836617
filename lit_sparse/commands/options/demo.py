"""Options of the command demo."""

from lit_sparse.commands.command import OptionsCommand
from lit_sparse.commands.parser import CommandParser

PROMPT = "From the year 1732 to the year 17"


def _add(parser: CommandParser) -> None:
    parser.add_argument("--prompt", type=str, default=PROMPT, help="sentence to look at")
    parser.add_argument("--out", type=str, default="runs/demo", help="folder for the page")


COMMAND = OptionsCommand(
    name="demo",
    summary="a sparse model at work, in a minute: one sentence, its edges, one page",
    description=(
        "Loads the recommended sparse model, finds the edges that lead to the next token of one sentence, beside those "
        "of the dense base, and writes a page to explore."
    ),
    example="lit-sparse demo",
    add_options=_add,
    run="lit_sparse.commands.demo:demo_command",
)
