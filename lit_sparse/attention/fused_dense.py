"""The base model's own attention on a GPU, by the gated kernels with every gate open.

A distilled run needs the base model in every step. Transformers' dense attention gets packed documents as a T x T mask,
which its fast kernels do not take. The gated kernels skip edges between documents.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from lit_sparse.attention import gpu
from lit_sparse.attention.bridge import attention_problem
from lit_sparse.attention.gates import ALWAYS_OPEN
from lit_sparse.attention.masks import mask_for_transformers

FUSED_DENSE = "lit_sparse_fused_dense"


def fused_dense_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    backend: str = "triton",
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function of transformers (shapes as there) for a sparsified layer, without gradient or dropout."""
    mask, scaling = attention_problem(module, query, key, attention_mask, {"scaling": scaling, **kwargs})
    query, key = query.to(value.dtype), key.to(value.dtype)
    cutoff = query.new_full((query.shape[1],), ALWAYS_OPEN, dtype=torch.float32)
    output, *_ = torch.ops.lit_sparse.gated_attention(
        query, key, value, mask.start, mask.stop, mask.holes, cutoff, None, None,
        torch.ones_like(cutoff[0]), False, False, scaling, softcap or 0.0, backend,
    )  # fmt: skip
    return output, None


AttentionInterface.register(FUSED_DENSE, fused_dense_attention)
AttentionMaskInterface.register(FUSED_DENSE, mask_for_transformers)


def serves(layers: Sequence[Any], device: torch.device) -> bool:
    """True if the kernels can replace the dense attention of these sparsified layers on a device."""
    dims = [getattr(module, "head_dim", gpu.MAX_DIM + 1) for module in layers]
    return device.type == "cuda" and gpu.available() and max(dims) <= gpu.MAX_DIM
