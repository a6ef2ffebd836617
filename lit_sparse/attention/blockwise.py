"""Gated attention for one block of queries at a time, on any device, with memory linear in the sequence length.

A block has some queries of some heads and all keys that they may attend to, small enough for the cache. PyTorch
computes the matrix products, row kernels compute the rest (`native`, in C, where it applies; else `row_kernels`). Query
heads that share a key head lie side by side as rows of one matrix, so keys and values are never repeated:

    folded   (B G, T H/G, D): row t H/G + i is query t of the group's i-th head
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_sparse.attention import native, row_kernels
from lit_sparse.attention.interface import Formula, Forward, Gradients, accumulation_dtype
from lit_sparse.attention.masks import EdgeMask
from lit_sparse.attention.tiles import Problem, RowKernels, Tile

_ROWS = 64  # rows of a matrix product; fewer run below the processor's speed
_EDGES = 1 << 22  # edges of a block: 16 MB of scores, which a last-level cache holds
_SPARSE = 0.3  # below this open fraction, reading only the open edges' values beats the dense product


def forward(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch kv_head key dim"],
    value: Float[Tensor, "batch kv_head key value_dim"],
    mask: EdgeMask,
    cutoff: Float[Tensor, " head"],
    offset: Float[Tensor, "batch kv_head key"] | None,
    seeds: Int[Tensor, " batch"] | None,
    formula: Formula,
) -> Forward:
    """Forward pass of `lit_sparse.attention.operator`, for any mask, device and float dtype."""
    batch, heads, rows, _ = query.shape
    problem = _problem(query, key, mask, cutoff, offset, seeds, formula)
    group, kv_heads, value_dim = problem.group, problem.kv_heads, value.shape[-1]
    q = _fold(query, kv_heads, problem.lse.dtype)
    output = q.new_zeros(*q.shape[:2], value_dim)
    kernels = _row_kernels(problem)
    if rows == 1 and seeds is None and kernels is native and native.reads(key) and native.reads(value):
        first, last = int(mask.start.min()), int(mask.stop.max())
        if first < last:
            tile = Tile(slice(0, batch * kv_heads), slice(0, 1), slice(first, last))
            native.decode(problem, tile, q.contiguous(), key, value, output)
    else:
        v: Tensor | None = None
        for tile, folded, scores in _weighed(problem, q, key):
            if kernels is native and native.reads(value):
                count = float(problem.opened[tile.heads, folded].sum())
                if count < _SPARSE * scores.numel():
                    native.open_values(problem, tile, scores, value, output)
                    continue
            v = _flat(value, q.dtype) if v is None else v
            output[tile.heads, folded] = torch.bmm(scores, v[tile.heads, tile.keys])
    counts = [_unfold(x, problem).sum(-1) for x in (problem.expected, problem.opened)]
    allowed = mask.allowed().sum(-1).to(q.dtype).view(-1, 1).expand(batch, heads)
    # (B, G, T, H/G, Dv) -> (B, T, H, Dv)
    output = output.view(batch, kv_heads, rows, group, value_dim).permute(0, 2, 1, 3, 4)
    output = output.reshape(batch, rows, heads, value_dim).to(value.dtype).contiguous()
    edges = torch.stack([*counts, allowed], dim=-1)
    return Forward(output, edges, _unfold(problem.lse, problem), _unfold(problem.mass, problem))


def gated_weights(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch kv_head key dim"],
    mask: EdgeMask,
    cutoff: Float[Tensor, " head"],
    offset: Float[Tensor, "batch kv_head key"] | None,
    formula: Formula,
) -> Iterator[tuple[Tile, Float[Tensor, "heads rows columns"]]]:
    """Weights of deterministic gates, block by block, zero at closed edges. The next block overwrites them."""
    problem = _problem(query, key, mask, cutoff, offset, None, formula)
    for tile, _, scores in _weighed(problem, _fold(query, problem.kv_heads, problem.lse.dtype), key):
        yield tile, scores


def backward(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch kv_head key dim"],
    value: Float[Tensor, "batch kv_head key value_dim"],
    mask: EdgeMask,
    cutoff: Float[Tensor, " head"],
    offset: Float[Tensor, "batch kv_head key"] | None,
    seeds: Int[Tensor, " batch"] | None,
    formula: Formula,
    output: Float[Tensor, "batch query head value_dim"],
    lse: Float[Tensor, "batch head query"],
    mass: Float[Tensor, "batch head renormalised_rows"],
    d_output: Float[Tensor, "batch query head value_dim"],
    d_expected: Float[Tensor, "batch head"],
) -> Gradients:
    """Backward pass of `lit_sparse.attention.operator`."""
    batch, _, rows, dim = query.shape
    problem = _problem(query, key, mask, cutoff, offset, seeds, formula)
    group, kv_heads, exact = problem.group, problem.kv_heads, problem.lse.dtype
    problem = problem._replace(lse=_fold_rows(lse, kv_heads), mass=_fold_rows(mass, kv_heads))
    q, k, v = _fold(query, kv_heads, exact), _flat(key, exact), _flat(value, exact)
    do = _fold(d_output.transpose(1, 2), kv_heads, exact)
    delta = _fold_rows(torch.linalg.vecdot(d_output.to(exact), output.to(exact)).transpose(1, 2), kv_heads)
    d_query, d_key, d_value = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    gate_gradient = torch.zeros_like(delta)
    kernels = _row_kernels(problem)
    d_offset = None if problem.offset is None else torch.zeros_like(problem.offset)
    space: Tensor | None = None
    more: Tensor | None = None
    for tile in _tiles(problem, rows):
        folded = slice(tile.queries.start * group, tile.queries.stop * group)
        q_, do_, k_, v_ = (
            q[tile.heads, folded],
            do[tile.heads, folded],
            k[tile.heads, tile.keys],
            v[tile.heads, tile.keys],
        )
        scores, space = _scores(q_, k_, space)
        gradients, more = _scores(do_, v_, more)
        # Summed over the block's rows in a fixed order, so that a run repeats bit for bit.
        key_gradient = None if d_offset is None else torch.empty_like(scores)
        kernels.backward(problem, tile, scores, gradients, delta, d_expected, gate_gradient, key_gradient)
        if d_offset is not None and key_gradient is not None:
            d_offset.flatten(0, 1)[tile.heads, tile.keys] += key_gradient.sum(1)
        d_value[tile.heads, tile.keys].baddbmm_(scores.transpose(1, 2), do_)
        d_query[tile.heads, folded] = torch.bmm(gradients, k_)
        d_key[tile.heads, tile.keys].baddbmm_(gradients.transpose(1, 2), q_)
    d_cutoff = -_unfold(gate_gradient, problem).sum((0, 2))
    d_query = d_query.view(batch, kv_heads, rows, group, dim).transpose(2, 3).reshape(query.shape)
    return Gradients(
        d_query.to(query.dtype),
        d_key.view(key.shape).to(key.dtype),
        d_value.view(value.shape).to(value.dtype),
        d_cutoff.to(cutoff.dtype),
        None if d_offset is None or offset is None else d_offset.to(offset.dtype),
    )


def _problem(
    query: Tensor,
    key: Tensor,
    mask: EdgeMask,
    cutoff: Tensor,
    offset: Tensor | None,
    seeds: Tensor | None,
    formula: Formula,
) -> Problem:
    batch, heads, rows, _ = query.shape
    kv_heads, group = key.shape[1], heads // key.shape[1]
    exact = accumulation_dtype(query.dtype)
    mask = EdgeMask(mask.start.contiguous(), mask.stop.contiguous(), mask.keys, mask.holes)
    lse = query.new_full((batch * kv_heads, rows * group), torch.inf, dtype=exact)
    mass = torch.ones_like(lse if formula.renormalise else lse[:, :0])
    formula = formula._replace(sharpness=formula.sharpness.to(exact))
    cutoff, seeds = cutoff.detach().to(exact).contiguous(), None if seeds is None else seeds.contiguous()
    offset = None if offset is None else offset.detach().to(exact).contiguous()
    counts = torch.zeros_like(lse), torch.zeros_like(lse)
    return Problem(mask, cutoff, offset, seeds, formula, batch, kv_heads, group, lse, mass, *counts)


def _row_kernels(problem: Problem) -> RowKernels:
    lse = problem.lse
    fits = lse.device.type == "cpu" and lse.dtype is torch.float32 and problem.mask.holes is None
    return native if fits and native.library() is not None else row_kernels


def _weighed(
    problem: Problem, query: Float[Tensor, "heads rows dim"], key: Float[Tensor, "batch kv_head key dim"]
) -> Iterator[tuple[Tile, slice, Float[Tensor, "heads rows columns"]]]:
    """Each tile, its folded rows and its gated weights, in memory that the next tile reuses."""
    k, kernels = _flat(key, query.dtype), _row_kernels(problem)
    space: Tensor | None = None
    for tile in _tiles(problem, query.shape[1] // problem.group):
        folded = slice(tile.queries.start * problem.group, tile.queries.stop * problem.group)
        scores, space = _scores(query[tile.heads, folded], k[tile.heads, tile.keys], space)
        kernels.forward(problem, tile, scores)
        yield tile, folded, scores


def _tiles(problem: Problem, rows: int) -> Iterator[Tile]:
    """Blocks that together hold every allowed edge, without blocks that hold none."""
    step = min(rows, max(1, _ROWS // problem.group))
    last = -rows % step
    # Keys that each block of queries may attend to, over all samples, in one transfer from the device.
    start = torch.nn.functional.pad(problem.mask.start, (0, last), value=problem.mask.keys)
    stop = torch.nn.functional.pad(problem.mask.stop, (0, last), value=0)
    empty = start >= stop
    start = start.masked_fill(empty, problem.mask.keys).unflatten(1, (-1, step)).amin((0, 2))
    stop = stop.masked_fill(empty, 0).unflatten(1, (-1, step)).amax((0, 2))
    count = problem.batch * problem.kv_heads
    for index, (first, past) in enumerate(torch.stack([start, stop], dim=-1).tolist()):
        if first >= past:
            continue
        queries = slice(index * step, min((index + 1) * step, rows))
        together = max(1, _EDGES // ((queries.stop - queries.start) * problem.group * (past - first)))
        for head in range(0, count, together):
            yield Tile(slice(head, min(head + together, count)), queries, slice(first, past))


def _scores(left: Tensor, right: Tensor, space: Tensor | None) -> tuple[Tensor, Tensor]:
    """left . right^T as a dense block, in memory that every block reuses."""
    shape = left.shape[0], left.shape[1], right.shape[1]
    size = shape[0] * shape[1] * shape[2]
    if space is None or space.numel() < size:
        space = left.new_empty(size)
    return torch.bmm(left, right.transpose(1, 2), out=space[:size].view(shape)), space


def _fold(x: Float[Tensor, "batch head query dim"], kv_heads: int, dtype: torch.dtype) -> Tensor:
    batch, heads, _rows, dim = x.shape
    x = x.unflatten(1, (kv_heads, heads // kv_heads)).transpose(2, 3)
    return x.reshape(batch * kv_heads, -1, dim).to(dtype)


def _fold_rows(x: Float[Tensor, "batch head query"], kv_heads: int) -> Tensor:
    x = x.unflatten(1, (kv_heads, x.shape[1] // kv_heads)).transpose(2, 3)
    return x.reshape(x.shape[0] * kv_heads, -1).contiguous()


def _unfold(x: Float[Tensor, "heads rows"], problem: Problem) -> Float[Tensor, "batch head query"]:
    unfolded = x.view(problem.batch, problem.kv_heads, x.shape[1] // problem.group, problem.group).transpose(2, 3)
    return unfolded.flatten(1, 2).contiguous()


def _flat(x: Float[Tensor, "batch kv_head key dim"], dtype: torch.dtype) -> Float[Tensor, "heads key dim"]:
    return x.reshape(-1, *x.shape[2:]).to(dtype)
