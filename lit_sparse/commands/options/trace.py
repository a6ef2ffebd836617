"""Options of the command trace."""

from jsonargparse import Namespace

from lit_sparse.commands.command import OptionsCommand
from lit_sparse.commands.options.shared import MODEL, NOTHING, add_models, check_models, check_prompts
from lit_sparse.commands.parser import CommandParser


def _add(parser: CommandParser) -> None:
    add_models(parser, MODEL, f"model to show beside it; default: the sparse model's base; {NOTHING}: no model")
    parser.add_argument("--prompt", type=str | None, default=None, help="text whose next token is explained")
    parser.add_argument("--prompts", type=str | None, default=None, help="file with one prompt a line, instead")
    parser.add_argument("--answer", type=str | None, default=None, help="token to explain; default: the model's own")
    parser.add_argument("--keep", type=float, default=0.9, help="share of the answer's probability to keep")
    parser.add_argument("--out", type=str | None, default=None, help="folder to write to; default: only print")
    parser.add_argument("--pictures", type=bool, default=False, help="with --prompts: a page for every prompt (true)")


def _check(parsed: Namespace) -> None:
    check_prompts(parsed)
    if not 0 < parsed.keep <= 1:
        raise ValueError(f"--keep is a share of the answer's probability, in (0, 1], got {parsed.keep}")
    if parsed.pictures and parsed.out is None:
        raise ValueError("--pictures needs a folder to write to: add --out")
    check_models(parsed)


COMMAND = OptionsCommand(
    name="trace",
    summary="the attention edges that lead to the answer to one prompt",
    description=(
        "Finds the few open edges that are enough for the answer and prints them, beside those of the dense base. "
        "With --out it writes trace.html (a page to explore), trace.png and trace.json; with --prompts it writes "
        "traces.json with the numbers of every prompt and their means."
    ),
    example='lit-sparse trace --model smollm2_2048 --prompt "The capital of Germany is" --out runs/trace',
    add_options=_add,
    check=_check,
    run="lit_sparse.commands.trace:trace_command",
)
