"""What watches a run."""

from lit_sparse.callbacks.checkpoints import AtomicCheckpointIO, checkpoint_callbacks
from lit_sparse.callbacks.interruption import StopAtStepBoundary
from lit_sparse.callbacks.progress import SparsityProgressBar, progress_bar
from lit_sparse.callbacks.throughput import Throughput
from lit_sparse.callbacks.time_budget import TimeBudget

__all__ = [
    "AtomicCheckpointIO",
    "SparsityProgressBar",
    "StopAtStepBoundary",
    "Throughput",
    "TimeBudget",
    "checkpoint_callbacks",
    "progress_bar",
]
