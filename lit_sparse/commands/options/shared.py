"""Options that several commands share, and the checks of them that need no library."""

from pathlib import Path

from jsonargparse import Namespace

from lit_sparse.commands.parser import CommandParser, nearest
from lit_sparse.common.shipped import shipped

NOTHING = "none"
"""Value of --against for no second model."""
MODEL = "folder, hub name, shipped model or package:NAME, sparse or dense"


def add_models(parser: CommandParser, model: str, against: str) -> None:
    """--model, and --against, what it is compared with; the arguments are their help."""
    parser.add_argument("--model", type=str, required=True, help=model)
    parser.add_argument("--against", type=str | None, default=None, help=against)


def check_models(parsed: Namespace) -> None:
    """Checks --model and --against.

    Raises:
        ValueError: see `check_model`.
    """
    check_model(parsed.model)
    check_model(None if parsed.against == NOTHING else parsed.against, "--against")


def check_prompts(parsed: Namespace) -> None:
    """Checks --prompt and --prompts.

    Raises:
        ValueError: both are given, or neither.
    """
    if (parsed.prompt is None) == (parsed.prompts is None):
        raise ValueError("give either --prompt TEXT or --prompts FILE")


def check_model(name: str | None, option: str = "--model") -> None:
    """A name that cannot be one of a hub (these have at most one slash) must be a folder that exists.

    Raises:
        ValueError: it does not.
    """
    if name is None or name.startswith("package:") or Path(name).expanduser().exists() or shipped("release", name):
        return
    if name.count("/") == 1 and name[0] not in "~./" and not Path(name).parent.is_dir():
        return
    if "/" not in name and name[0] not in "~.":
        return  # gpt2 and other old names of the hub have no slash
    folder = Path(name).expanduser()
    beside = [str(path) for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
    raise ValueError(f"{option}: there is no folder {name}{nearest(name, beside)}")
