"""Callbacks that a run of this package has, added by its modules (`configure_callbacks`)."""

from pathlib import Path

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar

from lit_sparse.training.callbacks.checkpoints import BestCheckpoint, StepBoundaryCheckpoint
from lit_sparse.training.callbacks.finish import FinishRun
from lit_sparse.training.callbacks.interruption import StopAtStepBoundary
from lit_sparse.training.callbacks.progress import SparsityProgressBar
from lit_sparse.training.callbacks.throughput import Throughput
from lit_sparse.training.history import keep_history


def run_callbacks(trainer: Trainer, run_dir: Path, *more: Callback) -> list[Callback]:
    """Callbacks for a run of this trainer: our numbers in the progress bar, training speed, a clean stop, checkpoints,
    the result of the run at its end, and `more`.

    They replace Lightning's default progress bar and checkpoint callback. All other callbacks of the trainer stay, and
    no second one of their kinds is added. A trainer that logs gets a CSV logger as well, for the report.
    With `enable_checkpointing=False`, or in a dry run, nothing is written.
    """
    given: list[Callback] = list(trainer.callbacks)  # type: ignore[attr-defined]
    brought: list[Callback] = []
    if (bar := trainer.progress_bar_callback) is not None and _as_it_comes(bar):
        trainer.callbacks.remove(bar)  # type: ignore[attr-defined]
        brought.append(SparsityProgressBar())
    checkpoints = [callback for callback in given if isinstance(callback, ModelCheckpoint)]
    own = [callback for callback in checkpoints if not _as_it_comes(callback)]
    if trainer.training and not trainer.fast_dev_run and checkpoints:  # type: ignore[attr-defined]
        keep_history(trainer, run_dir)
        brought += [*more, Throughput(), StopAtStepBoundary(run_dir), FinishRun(run_dir)]
        brought += [BestCheckpoint(run_dir), StepBoundaryCheckpoint(run_dir)]
    kinds = {type(callback) for callback in given}
    added = [callback for callback in brought if type(callback) not in kinds]
    # Lightning removes callbacks of which ours are special cases: the user's own are added again.
    return [*added, *own]


_SETTINGS: dict[type[Callback], tuple[str, ...]] = {
    RichProgressBar: ("_refresh_rate", "_leave", "theme", "_console_kwargs"),
    TQDMProgressBar: ("_refresh_rate", "_leave", "_process_position"),
    ModelCheckpoint: (
        *("dirpath", "filename", "monitor", "save_last", "save_top_k", "save_weights_only"),
        *("_every_n_train_steps", "_every_n_epochs", "_train_time_interval", "_save_on_train_epoch_end"),
    ),
}


def _as_it_comes(callback: Callback) -> bool:
    """True if it is one of Lightning's default callbacks with unchanged settings."""
    names = _SETTINGS.get(type(callback))
    if names is None:
        return False
    return all(vars(callback)[name] == value for name, value in vars(type(callback)()).items() if name in names)
