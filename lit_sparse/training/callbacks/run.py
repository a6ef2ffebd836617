"""The callbacks that a run of this package has: its modules bring them along (`configure_callbacks`)."""

from pathlib import Path

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, TQDMProgressBar

from lit_sparse.training.callbacks.checkpoints import BestCheckpoint, StepBoundaryCheckpoint
from lit_sparse.training.callbacks.finish import FinishRun
from lit_sparse.training.callbacks.interruption import StopAtStepBoundary
from lit_sparse.training.callbacks.progress import SparsityProgressBar
from lit_sparse.training.callbacks.throughput import Throughput


def run_callbacks(trainer: Trainer, run_dir: Path) -> list[Callback]:
    """What belongs to a run of this trainer: our figures in the progress bar, in training speed, a clean stop,
    checkpoints, and what the run is for at its end. Lightning's own bar and checkpoint make room, everybody else's
    callbacks stay. With `enable_checkpointing=False`, or in a dry run, nothing is written.
    """
    brought: list[Callback] = []
    if type(trainer.progress_bar_callback) in (TQDMProgressBar, SparsityProgressBar):
        brought.append(SparsityProgressBar())
    checkpoints = [callback for callback in trainer.callbacks if isinstance(callback, Checkpoint)]  # type: ignore[attr-defined]
    if not trainer.training or trainer.fast_dev_run or not checkpoints:  # type: ignore[attr-defined]
        return brought
    theirs = [callback for callback in checkpoints if not _is_lightnings(callback)]
    stop = StopAtStepBoundary(run_dir)
    return [
        *brought,
        Throughput(),
        stop,
        FinishRun(run_dir),
        *theirs,
        BestCheckpoint(run_dir),
        StepBoundaryCheckpoint(run_dir),
    ]


def _is_lightnings(callback: Callback) -> bool:
    """Whether it is what a trainer has that was given none, or ours from an earlier call."""
    ours = isinstance(callback, BestCheckpoint | StepBoundaryCheckpoint)
    return ours or (type(callback) is ModelCheckpoint and callback.dirpath is None and callback.monitor is None)
