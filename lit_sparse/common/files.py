"""Files: the cache folder, a check of a folder before work begins, and writing without half-written files."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder: `$LIT_SPARSE_CACHE`, by default `~/.cache/lit_sparse`. It may be deleted at any time."""
    return Path(os.environ.get("LIT_SPARSE_CACHE", Path.home() / ".cache" / "lit_sparse"))


def check_writable(folder: str | Path, option: str = "--out") -> None:
    """Checks that files can be written to a folder.

    Args:
        folder: folder of the files; it need not exist.
        option: option by which the user chooses the folder.

    Raises:
        ValueError: no file can be written to the folder, or to the first folder above it that exists.
    """
    place = Path(os.path.abspath(Path(folder).expanduser()))
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:  # permissions do not say enough on a read-only file system, in /proc, or for root
        tempfile.TemporaryDirectory(prefix=".lit_sparse-", dir=place).cleanup()
    except OSError as error:
        reason = "is a file, not a folder" if place.is_file() else f"is not writable ({error.strerror})"
        raise ValueError(f"cannot write to {folder}: {place} {reason}; choose another {option}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context with a temporary file that replaces `path` at the end. A reader or a second writer never gets half a
    file, and an error leaves the previous file. Folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all (see `replacing`)."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
