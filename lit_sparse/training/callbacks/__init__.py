"""Callbacks of a run. Modules add those that they need (`run.run_callbacks`); each also works alone."""

from lit_sparse.training.callbacks.checkpoints import BestCheckpoint, StepBoundaryCheckpoint
from lit_sparse.training.callbacks.finish import FinishRun
from lit_sparse.training.callbacks.interruption import StopAtStepBoundary
from lit_sparse.training.callbacks.progress import SparsityProgressBar
from lit_sparse.training.callbacks.throughput import Throughput
from lit_sparse.training.callbacks.time_budget import TimeBudget

__all__ = [
    "BestCheckpoint",
    "FinishRun",
    "SparsityProgressBar",
    "StepBoundaryCheckpoint",
    "StopAtStepBoundary",
    "Throughput",
    "TimeBudget",
]
