"""Centers of gates: heads' mean outputs, which replace closed edges.

With attention weights that sum to one, o_i = sum_j p_ij v_j = c + sum_j p_ij (v_j - c) for any c. Gates on the second
form leave c where an edge closes: mean ablation instead of zero ablation ("Interpretability in the wild", arXiv
2211.00593, section 2). Here c is the mean of the outputs of the heads that share a value.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_sparse.attention.bridge import attending, attention_modules
from lit_sparse.attention.gates import Gate
from lit_sparse.attention.masks import EdgeMask, allowed_edges
from lit_sparse.attention.reference import attention_logits

_NAME = "lit_sparse_centers"
_BLOCK = 1 << 24  # edges in one block: 64 MB in float32


@torch.no_grad()
def measure_centers(model: nn.Module, batches: Sequence[dict[str, Tensor]]) -> None:
    """Sets the centers of a sparsified model's gates, if they have centers, from its dense attention on batches.

    Args:
        model: a model in evaluation mode.
        batches: dicts with input_ids and position_ids (B, T); every token counts.
    """
    gates: dict[int, Gate] = {
        id(module): module.edge_gate for module in attention_modules(model) if module.edge_gate.center is not None
    }
    if not gates:
        return
    sums: dict[int, Tensor] = {}
    tokens = 0

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        mask = allowed_edges(attention_mask, query.shape[2], key.shape[2], query.device)
        output = dense_attention(query, key, value, mask, kwargs.get("scaling"), kwargs.get("softcap"))
        if id(module) in gates:
            by_value = output.float().unflatten(2, (value.shape[1], -1)).mean(3).sum((0, 1))
            sums[id(module)] = sums[id(module)] + by_value if id(module) in sums else by_value
        return output, None

    with attending(model, _NAME, attend):
        for batch in batches:
            model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
            tokens += batch["input_ids"].numel()
    for name, gate in gates.items():
        assert gate.center is not None
        gate.center.copy_(sums[name] / tokens)


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: EdgeMask, scaling: float | None, softcap: float | None
) -> Tensor:
    """Output of a family's own attention, (B, T, H, Dv), in plain torch; shapes as in `gated_attention`.

    It takes one block of queries at a time and recomputes it in the backward pass, with O(T + S) memory.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups = query.shape[1] // key.shape[1]

    def attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
        logits = attention_logits(query, key, scaling=scaling, softcap=softcap)
        weights = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min).softmax(-1).to(value.dtype)
        return torch.matmul(weights, value.repeat_interleave(groups, dim=1)).transpose(1, 2)

    parts = []
    for rows, keys in query_blocks(mask, query.shape[0] * query.shape[1]):
        block = query[:, :, rows], key[:, :, keys], value[:, :, keys], mask.block(rows, keys)
        if torch.is_grad_enabled():
            parts.append(checkpoint(attend, *block, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(attend(*block))
    return torch.cat(parts, dim=1).contiguous()


def query_blocks(mask: EdgeMask, matrices: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries, each with the keys that any of its queries may attend to. `_BLOCK` bounds the memory.

    Args:
        matrices: number of attention matrices in a block, B x H.
    """
    first, last = torch.stack([mask.start.amin(0), mask.stop.amax(0)]).tolist()
    step = max(1, _BLOCK // max(1, matrices * mask.keys))
    for row in range(0, len(first), step):
        rows = slice(row, min(row + step, len(first)))
        start, stop = min(first[rows]), max(last[rows])
        yield rows, slice(start, max(stop, start + 1))
