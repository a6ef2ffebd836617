"""Options of the command configs."""

from lit_sparse.commands.command import OptionsCommand
from lit_sparse.commands.parser import CommandParser


def _add(parser: CommandParser) -> None:
    parser.add_argument("--show", type=str | None, default=None, help="name of a config to print, to copy and change")


COMMAND = OptionsCommand(
    name="configs",
    summary="the configs that come with the package",
    description="Lists their names, which fit, info, validate and test take after --config.",
    example="lit-sparse configs --show quickstart > my.yaml",
    add_options=_add,
    run="lit_sparse.commands.configs:configs_command",
)
