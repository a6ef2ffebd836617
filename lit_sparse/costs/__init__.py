"""Costs of a run, computed before it starts: memory per GPU and operations per token."""

from lit_sparse.costs.activations import Activations, trace_activations
from lit_sparse.costs.flops import FlopsPerToken, flops_of_model, flops_per_token, matmul_weights
from lit_sparse.costs.memory import MemoryPlan, ModelSize, Precision, memory_per_gpu
from lit_sparse.costs.partition import STRATEGIES, Partition, partition_of

__all__ = [
    "STRATEGIES",
    "Activations",
    "FlopsPerToken",
    "MemoryPlan",
    "ModelSize",
    "Partition",
    "Precision",
    "flops_of_model",
    "flops_per_token",
    "matmul_weights",
    "memory_per_gpu",
    "partition_of",
    "trace_activations",
]
