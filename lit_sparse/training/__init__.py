"""Training: the LightningModules, how a run starts and ends, callbacks, strategies, checkpoints."""

from lit_sparse.training.dense import DenseModule
from lit_sparse.training.schedule import WarmupDecay

__all__ = ["DenseModule", "WarmupDecay"]
