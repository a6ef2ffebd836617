"""The command configs: the shipped configs, listed or printed."""

from itertools import takewhile
from pathlib import Path

from jsonargparse import Namespace

from lit_sparse.commands.layout import block
from lit_sparse.commands.run_command import config_file
from lit_sparse.common.shipped import shipped, shipped_names


def configs_command(parsed: Namespace) -> None:
    """Prints the names, each with the first comment of its file, or one file as it is.

    Raises:
        ValueError: no config of the name that --show gives.
    """
    if parsed.show is not None:
        print(Path(config_file(parsed.show)).read_text(encoding="utf-8"), end="")
        return
    rows = []
    for name in shipped_names("configs"):
        file = shipped("configs", name)
        assert file is not None
        rows.append((name.removesuffix(".yaml"), _first_sentence(file.read_text(encoding="utf-8"))))
    print(block("names to give after --config", rows))


def _first_sentence(text: str) -> str:
    """First sentence of the comment that a config begins with."""
    comment = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.removeprefix("#").strip() for line in comment).partition(". ")[0].rstrip(".")
