"""Where files go: the cache folder, a check before work begins, and writing that leaves nothing half done."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """`$LIT_SPARSE_CACHE`, by default `~/.cache/lit_sparse`. May be deleted at any time."""
    return Path(os.environ.get("LIT_SPARSE_CACHE", Path.home() / ".cache" / "lit_sparse"))


def check_writable(folder: str | Path, option: str = "--out") -> None:
    """
    Args:
        folder: where files will be written; it need not exist.
        option: what the user chooses it with.

    Raises:
        ValueError: the folder, or the first folder above it that exists, takes no files.
    """
    place = Path(os.path.abspath(Path(folder).expanduser()))
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:  # permissions do not say enough: of a read-only file system, of /proc, or for root
        tempfile.TemporaryDirectory(prefix=".lit_sparse-", dir=place).cleanup()
    except OSError as error:
        reason = "is a file, not a folder" if place.is_file() else f"takes no files ({error.strerror})"
        raise ValueError(f"cannot write to {folder}: {place} {reason}; choose another {option}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write into, which takes its place at the end: a reader, or a second writer, never meets
    half a file, and an error leaves what was there before. Folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` as a whole (see `replacing`)."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
