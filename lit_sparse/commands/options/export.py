"""Options of the command export."""

from lit_sparse.commands.command import OptionsCommand
from lit_sparse.commands.parser import CommandParser


def _add(parser: CommandParser) -> None:
    parser.add_argument("--ckpt", type=str, required=True, help="checkpoint that fit wrote, a file or a folder")
    parser.add_argument("--out", type=str, required=True, help="folder to write; it must not exist")
    parser.add_argument("--config", type=str | None, default=None, help="default: config.yaml of the checkpoint's run")


COMMAND = OptionsCommand(
    name="export",
    summary="the model folder of any checkpoint of a run",
    description="Writes weights, gates, tokenizer and a model card, as fit does at the end of a run.",
    example="lit-sparse export --ckpt runs/quickstart/checkpoints/last.ckpt --out my-sparse-model",
    add_options=_add,
    run="lit_sparse.commands.export:export_command",
)
