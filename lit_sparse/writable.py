"""The check that a command's results will find a place, before it computes them."""

import os
import tempfile
from pathlib import Path


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
