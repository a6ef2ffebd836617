"""Options that name models, and a first look at the names."""

from pathlib import Path

from lit_sparse.commands.parser import CommandParser, nearest
from lit_sparse.common.shipped import shipped

MODEL = "folder, hub name, shipped model or package:NAME, sparse or dense"


def add_models(parser: CommandParser, model: str, against: str) -> None:
    """--model, and --against, what it is compared with; the arguments are their help."""
    parser.add_argument("--model", type=str, required=True, help=model)
    parser.add_argument("--against", type=str | None, default=None, help=against)


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
