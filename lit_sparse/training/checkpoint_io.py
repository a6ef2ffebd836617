"""Checkpoints on disk, written whole or not at all and loaded without running code."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from lit_sparse.common.errors import CheckpointError
from lit_sparse.common.files import replacing
from lit_sparse.training.checkpoint_folders import consolidated

BEST, LAST = "best.ckpt", "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint files that are written beside the target and renamed, so that an interruption leaves the previous
    checkpoint whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint, whole or not at all.

        Raises:
            CheckpointError: the disk is full (or fills up); an earlier checkpoint is untouched.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        needed = _tensor_bytes(checkpoint)
        free = shutil.disk_usage(target.parent).free
        if free < needed:
            raise CheckpointError(
                f"no disk space for a checkpoint at {target}: it needs about {needed / 1e9:.2f} GB and "
                f"{free / 1e9:.2f} GB are free. Free some space and resume, or choose another --run_dir; earlier "
                "checkpoints are untouched"
            )
        try:
            with replacing(target) as temporary, open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if full or "enforce fail" in str(error) or "write" in str(error):
                raise CheckpointError(
                    f"could not write the checkpoint {target} ({error}); earlier checkpoints are untouched. Free "
                    "some disk space and resume"
                ) from error
            raise

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Loads a checkpoint. From a folder that a sharding strategy wrote, only the weights are joined and loaded.

        Raises:
            ValueError: there is no such file, or it is no checkpoint that loads without running code.
        """
        if recover(Path(path)).is_dir():
            return consolidated(Path(path))
        if not Path(path).is_file():
            raise ValueError(f"no checkpoint at {path}")
        try:
            checkpoint = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path} is no readable checkpoint: {str(error).splitlines()[0]}") from error
        if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
            raise ValueError(f"{path} is no checkpoint of a run: it was not written by Lightning")
        return checkpoint


def is_weights_only(checkpoint: dict[str, Any]) -> bool:
    """True if a checkpoint has only weights, without the state that resuming needs."""
    return "optimizer_states" not in checkpoint


@contextmanager
def replacing_folder(target: Path, is_first_rank: bool, barrier: Callable[[], None]) -> Iterator[Path]:
    """Context with a folder for all ranks to write into, which replaces `target` once all have written.

    Between the two renames there is no target, but never half of one; `recover` completes the replacement.
    """
    new, old = _beside(target)
    if is_first_rank:
        target.parent.mkdir(parents=True, exist_ok=True)
        recover(target)
        for rest in (new, old):
            shutil.rmtree(rest, ignore_errors=True)
    barrier()
    yield new
    barrier()
    if is_first_rank:
        if target.exists():
            target.rename(old)
        new.rename(target)
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    barrier()


def recover(target: Path) -> Path:
    """Completes a replacement of `target` that was interrupted between its two renames; returns `target`. Any number
    of processes may call it at once."""
    new, old = _beside(target)
    if not target.exists() and old.exists():
        with suppress(OSError):  # another process was faster
            (new if new.exists() else old).rename(target)  # the old one was moved away for a new one that is whole
    return target


def _beside(target: Path) -> tuple[Path, Path]:
    """Path at which a new version is written, and path to which the old one is moved until the new one is in place."""
    return target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_tensor_bytes(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(_tensor_bytes(item) for item in value)
    return 0
