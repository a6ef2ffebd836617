"""Options of the command push."""

from pathlib import Path

from jsonargparse import Namespace

from lit_sparse.commands.command import OptionsCommand
from lit_sparse.commands.parser import CommandParser


def _add(parser: CommandParser) -> None:
    parser.add_argument("--model", type=str, required=True, help="sparse model folder, such as the model/ of a run")
    parser.add_argument("--to", type=str, required=True, help="hub repository, USER/NAME, or NAME for your own")
    parser.add_argument("--private", type=bool, default=False, help="only you can read it (true)")
    parser.add_argument("--revision", type=str | None, default=None, help="branch to push to; default: main")
    parser.add_argument("--message", type=str | None, default=None, help="commit message")
    parser.add_argument("--license", type=str | None, default=None, help="default: the base model's, where it is known")


def _check(parsed: Namespace) -> None:
    if not Path(parsed.model).expanduser().is_dir():
        raise ValueError(f"--model: there is no folder {parsed.model}")
    if parsed.to.count("/") > 1:
        raise ValueError(f"--to is USER/NAME or NAME, got {parsed.to}")


COMMAND = OptionsCommand(
    name="push",
    summary="a sparse model folder to the Hugging Face hub",
    description=(
        "Uploads weights, gates, tokenizer and a model card. Log in first with `hf auth login`, or set HF_TOKEN. "
        '`lit_sparse.from_pretrained("USER/NAME")` loads the model again.'
    ),
    example="lit-sparse push --model runs/quickstart/model --to USER/NAME",
    add_options=_add,
    check=_check,
    run="lit_sparse.commands.push:push_command",
)
