"""Training: the LightningModules, the start and end of a run, callbacks, strategies, checkpoints."""

from lit_sparse.training.dense import DenseModule
from lit_sparse.training.execution import Execution
from lit_sparse.training.schedule import WarmupDecay
from lit_sparse.training.selection import Selection
from lit_sparse.training.start.calibration import Calibration

__all__ = ["Calibration", "DenseModule", "Execution", "Selection", "WarmupDecay"]
