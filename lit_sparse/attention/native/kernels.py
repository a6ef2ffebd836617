"""The C kernels behind the interface of `tiles.RowKernels`: float32 on the CPU, intervals of keys."""

import ctypes

import torch
from torch import Tensor

from lit_sparse.attention.native.build import Block, Rows, library, pointer
from lit_sparse.attention.tiles import Problem, Tile


def forward(problem: Problem, tile: Tile, scores: Tensor) -> None:
    """`RowKernels.forward` in C."""
    _library().gated_rows_forward(ctypes.byref(_block(problem, tile, scores)))


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
    """`RowKernels.backward` in C."""
    block = _block(problem, tile, scores)
    block.gradients, block.delta = pointer(gradients), pointer(delta)
    block.d_expected, block.gate_gradient = pointer(d_expected), pointer(gate_gradient)
    block.key_gradient = pointer(key_gradient)
    _library().gated_rows_backward(ctypes.byref(block))


def reads(x: Tensor) -> bool:
    """True if the kernels can read keys or values (B, G, S, D) without a copy."""
    return x.dtype in (torch.float32, torch.bfloat16) and x.stride(-1) == 1


def open_values(problem: Problem, tile: Tile, weights: Tensor, value: Tensor, output: Tensor) -> None:
    """Writes the tile's rows of output (folded) = weights . value, and reads only values with a weight other than 0."""
    block, rows, offsets = _block(problem, tile, weights), *_rows(value, tile)
    _library().open_values(ctypes.byref(block), ctypes.byref(rows), pointer(output))
    del offsets  # alive until here


def decode(problem: Problem, tile: Tile, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
    """Gated attention of one query per sample with deterministic gates: query (B G, H/G, D) and output (B G, H/G, Dv)
    folded, float32."""
    scores = query.new_empty(query.shape[0], query.shape[1], tile.keys.stop - tile.keys.start)
    block = _block(problem, tile, scores)
    (keys, key_offsets), (values, value_offsets) = _rows(key, tile), _rows(value, tile)
    _library().gated_decode(
        ctypes.byref(block), pointer(query), ctypes.byref(keys), ctypes.byref(values), pointer(output)
    )
    del key_offsets, value_offsets  # alive until here


def _library() -> ctypes.CDLL:
    loaded = library()
    assert loaded is not None, "callers ask library() first"
    return loaded


def _rows(x: Tensor, tile: Tile) -> tuple[Rows, ctypes.Array[ctypes.c_int64]]:
    """The tile's keys or values for C, and the memory to which they point."""
    batch, head, key, _ = x.stride()
    count, first, heads = x.shape[1], tile.keys.start * key, range(tile.heads.start, tile.heads.stop)
    offsets = (ctypes.c_int64 * len(heads))(*(n // count * batch + n % count * head + first for n in heads))
    return Rows(pointer(x), ctypes.addressof(offsets), key, x.shape[3], x.dtype is torch.bfloat16), offsets


def _block(problem: Problem, tile: Tile, scores: Tensor) -> Block:
    mask, formula = problem.mask, problem.formula
    return Block(
        scores=pointer(scores),
        first_head=tile.heads.start,
        count=tile.heads.stop - tile.heads.start,
        kv_heads=problem.kv_heads,
        group=problem.group,
        queries=problem.lse.shape[1] // problem.group,
        first_query=tile.queries.start,
        rows=tile.queries.stop - tile.queries.start,
        first_key=tile.keys.start,
        columns=tile.keys.stop - tile.keys.start,
        start=pointer(mask.start),
        stop=pointer(mask.stop),
        mask_stride=mask.start.shape[1] if mask.start.shape[0] > 1 else 0,
        cutoff=pointer(problem.cutoff),
        offset=pointer(problem.offset),
        keys=mask.keys,
        seeds=pointer(problem.seeds),
        sharpness=pointer(formula.sharpness),
        scaling=formula.scaling,
        softcap=formula.softcap,
        normalised=formula.normalised,
        renormalise=formula.renormalise,
        lse=pointer(problem.lse),
        mass=pointer(problem.mass),
        expected=pointer(problem.expected),
        opened=pointer(problem.opened),
    )
