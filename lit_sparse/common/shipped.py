"""Files that come with the package: configs, releases, examples.

A wheel has them inside the package. In an editable install they are in the repository, beside the package.
"""

from pathlib import Path
from typing import Literal

Kind = Literal["configs", "release", "examples"]

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(kind: Kind, name: str) -> Path | None:
    """The shipped file or folder of this name, or None.

    Args:
        name: path in the folder of its kind (`paper/addition.yaml`, `smollm2_2048`), for a config also without `.yaml`.
    """
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    names = [name, f"{name}.yaml"] if kind == "configs" else [name]
    found = (root / part for root in _roots(kind) for part in names)
    return next((path for path in found if (path.is_file() if kind == "configs" else path.exists())), None)


def shipped_names(kind: Kind) -> list[str]:
    """Names of the shipped files of a kind: for configs all files, also in subfolders, else the folder's entries."""
    found = {
        path.relative_to(root).as_posix()
        for root in _roots(kind)
        for path in (root.rglob("*.yaml") if kind == "configs" else root.iterdir())
    }
    return sorted(name for name in found if not name.startswith(("_", ".")))


def _roots(kind: Kind) -> list[Path]:
    beside = _PACKAGE.parent
    roots = [_PACKAGE, beside] if (beside / "pyproject.toml").is_file() else [_PACKAGE]
    return [root / kind for root in roots if (root / kind).is_dir()]
