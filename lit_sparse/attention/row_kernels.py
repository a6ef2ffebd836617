"""The element-wise part of blockwise gated attention in torch: any device, any mask, float32 or float64.

Formulas: `operator.py`. The C kernels in `native/` do the same for float32 on a CPU.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_sparse.attention import noise
from lit_sparse.attention.tiles import Problem, Tile


class _Rows(NamedTuple):
    """Scores and gates of a block, (heads, queries, group, keys) except for row statistics."""

    logits: Tensor
    shift: Tensor
    slope: Tensor | float  # of the soft cap
    uniform: Tensor | None


def forward(problem: Problem, tile: Tile, scores: Tensor) -> None:
    """`RowKernels.forward` in torch."""
    lse = _logits(problem, tile, scores)[0].logsumexp(-1, keepdim=True)
    _rows_of(problem, tile, problem.lse)[:] = lse.masked_fill_(lse == -torch.inf, torch.inf).squeeze(-1)
    rows = _rows(problem, tile, scores)
    lse = _rows_of(problem, tile, problem.lse)[..., None]
    z = problem.formula.sharpness * (rows.logits - rows.shift)
    e = torch.sigmoid(z)
    gates = z > 0 if rows.uniform is None else rows.uniform < e
    weights = torch.exp(rows.logits - lse) * gates
    _rows_of(problem, tile, problem.expected)[:] = e.sum(-1)
    _rows_of(problem, tile, problem.opened)[:] = gates.sum(-1)
    if problem.formula.renormalise:
        mass = weights.sum(-1)
        mass = torch.where(mass > 0, mass, 1.0)
        _rows_of(problem, tile, problem.mass)[:] = mass
        weights /= mass[..., None]
    scores.copy_(weights.flatten(1, 2))


def backward(
    problem: Problem,
    tile: Tile,
    scores: Tensor,
    gradients: Tensor,
    delta: Tensor,
    d_expected: Tensor,
    gate_gradient: Tensor,
    key_gradient: Tensor | None,
) -> None:
    """`RowKernels.backward` in torch."""
    formula = problem.formula
    rows = _rows(problem, tile, scores)
    z = formula.sharpness * (rows.logits - rows.shift)
    e = torch.sigmoid(z)
    gates = z > 0 if rows.uniform is None else rows.uniform < e
    p = torch.exp(rows.logits - _rows_of(problem, tile, problem.lse)[..., None])
    g = gradients.view(p.shape)
    row: Tensor | float = _rows_of(problem, tile, delta)[..., None]
    inverse: Tensor | float = 1.0
    if formula.renormalise:
        inverse = 1 / _rows_of(problem, tile, problem.mass)[..., None]
        g, row = (g - row) * inverse, 0.0
    pg = p * g
    closed = torch.sigmoid(-z)
    c = _per_head(problem, tile, d_expected) * e * closed
    if rows.uniform is not None:
        # t (1 - t) = x y / (x + y)^2 with x = (1 - u) e, y = u (1 - e)
        x, y = (1 - rows.uniform) * e, rows.uniform * closed
        c += pg * x * y / (x + y).square()
    c *= formula.sharpness
    if key_gradient is not None:
        key_gradient.copy_(c.flatten(1, 2))
    total = c.sum(-1)
    d_logits = pg * gates - p * row + c
    if formula.normalised:
        d_logits -= p * total[..., None]
    scores.copy_((p * gates * inverse).flatten(1, 2))
    gradients.copy_((d_logits * rows.slope * formula.scaling).flatten(1, 2))
    _rows_of(problem, tile, gate_gradient)[:] = total


def _rows(problem: Problem, tile: Tile, scores: Tensor) -> _Rows:
    logits, slope = _logits(problem, tile, scores)
    shift = _per_head(problem, tile, problem.cutoff.expand(problem.batch, -1))
    if problem.formula.normalised:
        shift = shift + _rows_of(problem, tile, problem.lse)[..., None]
    if problem.offset is not None:
        shift = shift - problem.offset.flatten(0, 1)[tile.heads, tile.keys][:, None, None]
    uniform = None
    if problem.seeds is not None:
        keys, queries = (tile.keys.start, tile.keys.stop), (tile.queries.start, tile.queries.stop)
        samples = slice(tile.heads.start // problem.kv_heads, -(-tile.heads.stop // problem.kv_heads))
        drawn = noise.uniform(problem.seeds[samples], problem.kv_heads * problem.group, queries, keys)
        drawn = drawn.unflatten(1, (problem.kv_heads, problem.group)).flatten(0, 1).transpose(1, 2)
        skip = samples.start * problem.kv_heads
        uniform = drawn[tile.heads.start - skip : tile.heads.stop - skip].to(logits.dtype)
    return _Rows(logits, shift, slope, uniform)


def _logits(problem: Problem, tile: Tile, scores: Tensor) -> tuple[Tensor, Tensor | float]:
    """Scaled, capped, masked logits, and the slope of the cap."""
    formula = problem.formula
    logits = scores.view(scores.shape[0], -1, problem.group, scores.shape[-1]) * formula.scaling
    slope: Tensor | float = 1.0
    if formula.softcap > 0:
        capped = torch.tanh(logits / formula.softcap)
        logits, slope = formula.softcap * capped, 1 - capped.square()
    allowed = problem.mask.block(tile.queries, tile.keys)  # (B or 1, 1, queries, keys)
    allowed = allowed.expand(problem.batch, problem.kv_heads, -1, -1).flatten(0, 1)[tile.heads]
    return logits.masked_fill(~allowed[:, :, None], -torch.inf), slope


def _rows_of(problem: Problem, tile: Tile, folded: Tensor) -> Tensor:
    """A tile's part of a row statistic, as a view (heads, queries, group)."""
    return folded.view(folded.shape[0], -1, problem.group)[tile.heads, tile.queries]


def _per_head(problem: Problem, tile: Tile, x: Tensor) -> Tensor:
    """(B, H) -> (heads of the tile, 1, group, 1)."""
    return x.reshape(-1, problem.group)[tile.heads][:, None, :, None]
