"""Memory of one GPU in training, by part, in bytes.

    N weights, t of them trained (adapters included), n GPUs, w bytes a weight, s bytes of optimizer states a weight

                 DDP     ZeRO-1            ZeRO-2            ZeRO-3              FSDP2
    weights      w N     w N               w N               w N / n             w N / n
    gradients    w t     w t               w t / n           w t / n             w t / n
    optimizer    s t     (4 + s) t / n     (4 + s) t / n     (4 + s) t / n       s t / n

(arXiv 1910.02054, section 3). Mixed precision under DDP and FSDP2 keeps weights in float32. DeepSpeed keeps them in the
low precision, and a float32 master copy of trained weights beside the optimizer's states: these are the 4 bytes. The
base model is sharded like the weights. Not counted are the CUDA context and its libraries (about 1 GB), fragmentation,
and the optimizer step's temporaries, which reuse the memory of activations.
"""

from dataclasses import dataclass

import torch

from lit_sparse.costs.activations import Activations
from lit_sparse.costs.partition import Partition

_BUCKET = 200_000_000  # gradients in DeepSpeed's reduce bucket, Lightning's default; two overlap
_LIVE = 1_000_000_000  # weights that ZeRO-3 keeps gathered at most (stage3_max_live_parameters, Lightning's default)
_LOGITS = 3  # copies: the model's and the base's, later the gradient's
_LOSS_CHUNK = 2**21  # logits whose losses are computed at a time, in float32 with about five temporaries


@dataclass(frozen=True)
class Precision:
    """Number types that Lightning's `trainer.precision` stands for.

    low: the 2-byte type of matrix products; None in float32.
    true: True if weights have that type too.
    """

    low: torch.dtype | None = None
    true: bool = False

    @classmethod
    def of(cls, name: str | int | None) -> "Precision":
        text = str(name or "32-true")
        low = torch.bfloat16 if text.startswith("bf16") else torch.float16 if text.startswith("16") else None
        return cls(low, text.endswith("-true") and low is not None)

    def stored(self, partition: Partition) -> torch.dtype:
        """The type in which a strategy holds the trained model's weights and gradients."""
        return self.low if self.low is not None and (self.true or partition.engine) else torch.float32

    def computed(self, partition: Partition) -> torch.dtype:
        """The type of weights when a layer runs. Strategies that gather weights do so in the low precision."""
        return self.low if self.low is not None and partition.weights else self.stored(partition)

    def autocast(self, partition: Partition) -> torch.dtype | None:
        """The type that autocast chooses; None if it is not used."""
        return None if self.true or partition.engine else self.low


@dataclass(frozen=True)
class ModelSize:
    """Numbers of weights.

    base: weights of the dense model, as many as the teacher has.
    total: weights of the trained model, with gates and adapters.
    trained: the part of `total` that learns.
    layer: weights of the largest layer.
    outside: weights of embeddings, head and all else that lies in no layer.
    vocabulary: width of the logits.
    """

    base: int
    total: int
    trained: int
    layer: int
    outside: int
    vocabulary: int


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on a GPU by part, and bytes on the host for offloaded parts."""

    parts: dict[str, float]
    host: float

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def memory_per_gpu(
    size: ModelSize,
    activations: Activations,
    partition: Partition,
    *,
    gpus: int,
    tokens: int,
    precision: Precision,
    optimizer_bytes: float,
    checkpointing: bool,
    teacher: bool = True,
) -> MemoryPlan:
    """Peak memory of a training step. The peak comes when the losses are computed, because gradients of the last step
    are freed only before the backward pass.

    Args:
        tokens: number of tokens in a micro-batch on one GPU.
        optimizer_bytes: bytes of optimizer states per trained weight.
        teacher: True if a copy of the base model lies beside the trained one, sharded as its weights are.
    """
    weight_bytes = precision.stored(partition).itemsize
    compute_bytes = 4 if precision.low is None else precision.low.itemsize
    share = 1 / gpus
    weights = weight_bytes * size.total * (share if partition.weights else 1)
    gradients = weight_bytes * size.trained * (share if partition.gradients else 1)
    states = (optimizer_bytes + 4 * partition.engine) * size.trained * (share if partition.optimizer else 1)
    host = (weights if partition.offload_weights else 0) + (states + gradients if partition.offload_optimizer else 0)
    base = teacher * (4 if precision.low is None else 2) * size.base
    held = activations.held(checkpointing)
    count = tokens * size.vocabulary
    logits = _LOGITS * compute_bytes * count + 5 * 4 * min(count, _LOSS_CHUNK)
    parts = {
        "weights": 0 if partition.offload_weights else weights,
        "gradients": 0 if partition.offload_optimizer else gradients,
        "optimizer": 0 if partition.offload_optimizer else states,
        "buffers of the strategy": _buffers(size, partition, gpus, weight_bytes, compute_bytes, teacher),
        "base model (teacher)": base * (share if partition.weights else 1),
        "activations": held,
        "output logits": logits,
    }
    if checkpointing:
        parts["a layer recomputed, beyond the logits"] = max(0.0, activations.one_layer - logits)
    return MemoryPlan(parts, host)


def _buffers(
    size: ModelSize, partition: Partition, gpus: int, weight_bytes: int, compute_bytes: int, teacher: bool
) -> float:
    """DDP's gradient buckets, DeepSpeed's reduce buckets, and weights gathered for use."""
    if gpus == 1:
        return 0.0
    if partition.engine:
        buckets = 2 * weight_bytes * min(_BUCKET, size.trained)
        return buckets + (weight_bytes * min(_LIVE, size.total) if partition.weights else 0)
    if partition.weights:  # FSDP2: the layer that runs and the next one; what lies outside of layers stays gathered
        return compute_bytes * (2 * size.layer + (1 + teacher) * size.outside)
    return weight_bytes * size.trained
