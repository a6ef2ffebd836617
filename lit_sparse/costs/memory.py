"""Memory of one GPU in training, by part, in bytes.

    N weights, t of them trained (adapters included), n GPUs, w bytes a weight, s bytes of optimizer states a weight

                 DDP     ZeRO-1            ZeRO-2            ZeRO-3              FSDP2
    weights      w N     w N               w N               w N / n             w N / n
    gradients    w t     w t               w t / n           w t / n             w t / n
    optimizer    s t     (4 + s) t / n     (4 + s) t / n     (4 + s) t / n       s t / n

(arXiv 1910.02054, section 3). Mixed precision under DDP and FSDP2 keeps weights in float32; DeepSpeed keeps them in the low
precision, and a float32 master copy of what is trained beside the optimizer's states: these are the 4 bytes. Not counted:
the CUDA context and its libraries (about 1 GB), fragmentation, and the optimizer step's temporaries, which take the place
of activations.
"""

from dataclasses import dataclass

import torch
from torch import nn

from lit_sparse.costs.activations import Activations
from lit_sparse.costs.sharding import Sharding

_BUCKET = 200_000_000  # gradients in DeepSpeed's reduce bucket, Lightning's default; two overlap
_LIVE = 1_000_000_000  # weights that ZeRO-3 keeps gathered at most (stage3_max_live_parameters, Lightning's default)
_LOGITS = 4  # model's and base's logits and the scored rows of both, or of these and both gradients


@dataclass(frozen=True)
class Precision:
    """What Lightning's `trainer.precision` means for memory.

    low: the 2-byte type of matrix products, None in float32.
    true: weights are of that type too.
    """

    low: torch.dtype | None = None
    true: bool = False

    @classmethod
    def of(cls, name: str | int | None) -> "Precision":
        text = str(name or "32-true")
        low = torch.bfloat16 if text.startswith("bf16") else torch.float16 if text.startswith("16") else None
        return cls(low, text.endswith("-true") and low is not None)

    def weights(self, sharding: Sharding) -> torch.dtype:
        """The type in which a strategy holds the trained model's weights."""
        return self.low if self.low is not None and (self.true or sharding.engine) else torch.float32

    def autocast(self, sharding: Sharding) -> torch.dtype | None:
        """The type that autocast chooses, None where weights have it already."""
        return None if self.weights(sharding) is self.low else self.low


@dataclass(frozen=True)
class ModelSize:
    """Numbers of weights.

    base: of the dense model, as many as the teacher has.
    total: of the trained model, with gates and adapters.
    trained: of these, those that learn.
    layer: of the largest layer; `outside`: embeddings, head and norms.
    """

    base: int
    total: int
    trained: int
    layer: int
    vocabulary: int

    @property
    def low_bytes(self) -> int:
        return 2


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part, and on the host for what is offloaded."""

    parts: dict[str, float]
    host: float

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def memory_per_gpu(
    size: ModelSize,
    activations: Activations,
    sharding: Sharding,
    *,
    gpus: int,
    tokens: int,
    precision: Precision,
    optimizer_bytes: float,
    checkpointing: bool,
    teacher: float = 1.0,
) -> MemoryPlan:
    """The peak of a training step, which comes when the losses are computed: gradients of the last step are freed only
    before the backward pass.

    Args:
        tokens: of a micro-batch on one GPU.
        optimizer_bytes: states of the optimizer for each trained weight.
        teacher: copies of the base model beside the trained one, 0 or 1.
    """
    weight_bytes = precision.weights(sharding).itemsize
    compute_bytes = 4 if precision.low is None else precision.low.itemsize
    share = 1 / gpus
    weights = weight_bytes * size.total * (share if sharding.weights else 1)
    gradients = weight_bytes * size.trained * (share if sharding.gradients else 1)
    states = (optimizer_bytes + 4 * sharding.engine) * size.trained * (share if sharding.optimizer else 1)
    host = (weights if sharding.offload_weights else 0) + (states + gradients if sharding.offload_optimizer else 0)
    held = activations.held(checkpointing)
    logits = _LOGITS * compute_bytes * tokens * size.vocabulary
    parts = {
        "weights": 0 if sharding.offload_weights else weights,
        "gradients": 0 if sharding.offload_optimizer else gradients,
        "optimizer": 0 if sharding.offload_optimizer else states,
        "buffers of the strategy": _buffers(size, sharding, gpus, weight_bytes, compute_bytes),
        "base model (teacher)": teacher * compute_bytes * size.base,
        "activations": held,
        "output logits": logits,
    }
    if checkpointing:
        parts["a layer recomputed, beyond the logits"] = max(0.0, activations.one_layer - logits)
    return MemoryPlan(parts, host)


def _buffers(size: ModelSize, sharding: Sharding, gpus: int, weight_bytes: int, compute_bytes: int) -> float:
    """DDP's gradient buckets, DeepSpeed's reduce buckets, and weights gathered for use."""
    if gpus == 1:
        return 0.0
    if sharding.engine:
        buckets = 2 * weight_bytes * min(_BUCKET, size.trained)
        return buckets + (weight_bytes * min(_LIVE, size.total) if sharding.weights else 0)
    if sharding.weights:  # FSDP2 gathers one layer while another is computed, and keeps what lies outside of layers
        return compute_bytes * 2 * size.layer
    return weight_bytes * size.trained
