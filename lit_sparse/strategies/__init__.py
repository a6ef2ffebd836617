"""Training on several devices. DDP is Lightning's own; these two shard what DDP copies."""

from lit_sparse.strategies.deepspeed import SparseDeepSpeedStrategy
from lit_sparse.strategies.fsdp import SparseFSDPStrategy
from lit_sparse.strategies.sharding import Sharding, sharding_of

__all__ = ["Sharding", "SparseDeepSpeedStrategy", "SparseFSDPStrategy", "sharding_of"]
