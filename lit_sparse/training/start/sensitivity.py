"""Cost of closing edges in the heads of one layer, as a KL estimate (the formula is in `calibration.py`)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lit_sparse.attention.dense_attention import query_blocks
from lit_sparse.attention.gates import Gate
from lit_sparse.attention.masks import EdgeMask
from lit_sparse.attention.reference import attention_logits

LEVELS = 40
"""Number of cutoffs tried per head."""

_SCORES = 1 << 22  # largest number of a head's scores from which its cutoffs are chosen


class LayerSensitivity:
    """KL estimate and open edges for each head and cutoff level of one layer, summed over batches.

    Tensors here have heads before samples and keys before queries: (H, B, S, T).
    """

    def __init__(self, module: Any):
        self.gate: Gate = module.edge_gate
        self.cutoffs: Tensor | None = None  # (H, levels), ascending; the first closes nothing

    def add(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: EdgeMask,
        scaling: float,
        softcap: float | None,
        gradient: Tensor,
    ) -> None:
        """Adds a batch, one block of queries at a time. Shapes are those of `gated_attention`, values those of
        `Gate.deviation`; the gradient of the log likelihood is (B, T, H, Dv)."""
        groups = query.shape[1] // key.shape[1]
        offset = self.gate.key_offset(value)
        offset = None if offset is None else offset.repeat_interleave(groups, dim=1).transpose(0, 1)[..., None]
        key, value = (x.repeat_interleave(groups, dim=1).transpose(0, 1) for x in (key, value))
        query, gradient = query.transpose(0, 1), gradient.permute(2, 0, 1, 3)
        blocks = list(query_blocks(mask, query.shape[0] * query.shape[1]))

        def look(rows: slice, keys: slice) -> tuple[Tensor, Tensor, Tensor]:
            """Scores, softmax weights and allowed edges of a block."""
            allowed = mask.block(rows, keys).transpose(0, 1).mT
            logits = attention_logits(key[:, :, keys], query[:, :, rows], scaling=scaling, softcap=softcap)
            logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
            shifted = logits - logits.logsumexp(-2, keepdim=True)
            score = shifted if self.gate.form().normalised else logits
            score = score if offset is None else score + offset[:, :, keys]
            return score, shifted.exp(), allowed.expand_as(score)

        if self.cutoffs is None:
            edges = mask.allowed().expand(query.shape[1], -1).sum()
            self.cutoffs = _levels(((score, allowed) for score, _, allowed in (look(*at) for at in blocks)), int(edges))
            self.kl = torch.zeros_like(self.cutoffs, dtype=torch.float64)
            self.edges = torch.zeros_like(self.kl)
            self.allowed = self.kl.new_zeros(())
        levels = self.cutoffs.shape[1]
        for rows, keys in blocks:
            score, weight, allowed = look(rows, keys)
            effect = weight * torch.matmul(value[:, :, keys], gradient[:, :, rows].mT) * allowed
            # An edge is closed at level k when its score <= cutoff_k, that is from its bucket on. Summed along the
            # keys: on a GPU neighbouring threads then have different queries, and do not wait for each other.
            bucket = torch.searchsorted(self.cutoffs, score.flatten(1)).view(score.shape)
            sums = effect.new_zeros(*effect.shape[:2], levels + 1, effect.shape[3])
            closed = torch.zeros_like(sums).scatter_add_(2, bucket, allowed.to(sums.dtype))
            closed = closed.sum((1, 3), dtype=torch.float64).cumsum(-1)
            closed_effect = sums.scatter_add_(2, bucket, effect).cumsum(2)[:, :, :levels]
            self.kl += 0.5 * closed_effect.square().sum((1, 3), dtype=torch.float64)
            self.edges += closed[:, -1:] - closed[:, :levels]
            self.allowed += closed[:, -1].sum()

    def set_cutoffs(self, level: Tensor) -> None:
        """Sets the cutoffs of the level (H,) of each head."""
        assert self.cutoffs is not None
        self.gate.set_cutoff(self.cutoffs.gather(-1, level.to(self.cutoffs.device)[:, None]).squeeze(-1))


def _levels(blocks: Iterable[tuple[Tensor, Tensor]], edges: int) -> Tensor:
    """Cutoffs (H, levels) that leave 1, ..., 0.0003 and none of each head's edges open.

    Args:
        blocks: scores and allowed edges, (H, B, S, T) each, the same edges for all heads.
        edges: number of allowed edges. If they are more than `_SCORES`, a sample with a fixed seed is used.
    """
    chosen: Tensor | None = None
    if edges > _SCORES:
        chosen = torch.randint(edges, (_SCORES,), generator=torch.Generator().manual_seed(0)).sort().values
    parts, least, most, done = [], [], [], 0
    for score, allowed in blocks:
        found = score.flatten(1)[:, allowed[0].flatten().nonzero()[:, 0]]
        least.append(found.amin(1))
        most.append(found.amax(1))
        if chosen is not None:
            here = chosen[(chosen >= done) & (chosen < done + found.shape[1])] - done
            done += found.shape[1]
            found = found[:, here.to(found.device)]
        parts.append(found)
    ordered = torch.cat(parts, dim=1).sort(dim=1).values
    left = torch.logspace(0, -3.5, LEVELS - 1, dtype=torch.float64)
    cutoffs = ordered[:, ((1 - left) * (ordered.shape[1] - 1)).long().to(ordered.device)]
    cutoffs[:, 0] = torch.stack(least).amin(0) - 1.0  # below the smallest: all open
    return torch.cat([cutoffs, torch.stack(most).amax(0)[:, None] + 1e-3], dim=1)
