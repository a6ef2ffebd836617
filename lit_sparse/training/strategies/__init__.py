"""Strategies for training on several devices. DDP is Lightning's own; these two shard what DDP copies."""

from lit_sparse.training.strategies.deepspeed import SparseDeepSpeedStrategy
from lit_sparse.training.strategies.fsdp import SparseFSDPStrategy
from lit_sparse.training.strategies.sharding import Sharding, sharding_of

__all__ = ["Sharding", "SparseDeepSpeedStrategy", "SparseFSDPStrategy", "sharding_of"]
