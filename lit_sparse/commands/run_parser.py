"""The parser of the commands of LightningCLI."""

from lightning.pytorch.cli import LightningArgumentParser

from lit_sparse.commands.parser import CommandParser


class RunParser(CommandParser, LightningArgumentParser):
    """Parser of a whole run: trainer, model, data, and what `SparseCLI` adds."""

    more_help = ", --model.help CLASS and --data.help CLASS those of a class"
