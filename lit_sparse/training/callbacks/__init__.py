"""What watches a run."""

from lit_sparse.training.callbacks.checkpoints import checkpoint_callbacks
from lit_sparse.training.callbacks.interruption import StopAtStepBoundary
from lit_sparse.training.callbacks.progress import SparsityProgressBar
from lit_sparse.training.callbacks.throughput import Throughput
from lit_sparse.training.callbacks.time_budget import TimeBudget

__all__ = [
    "SparsityProgressBar",
    "StopAtStepBoundary",
    "Throughput",
    "TimeBudget",
    "checkpoint_callbacks",
]
