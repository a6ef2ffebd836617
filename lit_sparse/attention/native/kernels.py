"""The C kernels behind the interface of `blockwise.RowKernels`: float32 on the CPU, intervals of keys."""

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_sparse.attention.native.library import Block, library, pointer

if TYPE_CHECKING:
    from lit_sparse.attention.blockwise import Problem, Tile


def forward(problem: "Problem", tile: "Tile", scores: Tensor, expected: Tensor, opened: Tensor) -> None:
    block = _block(problem, tile, scores)
    block.expected, block.opened = pointer(expected), pointer(opened)
    _library().gated_rows_forward(ctypes.byref(block))


def backward(
    problem: "Problem",
    tile: "Tile",
    scores: Tensor,
    gradients: Tensor,
    delta: Tensor,
    d_expected: Tensor,
    gate_gradient: Tensor,
) -> None:
    block = _block(problem, tile, scores)
    block.gradients, block.delta = pointer(gradients), pointer(delta)
    block.d_expected, block.gate_gradient = pointer(d_expected), pointer(gate_gradient)
    _library().gated_rows_backward(ctypes.byref(block))


def open_values(weights: Tensor, tile: "Tile", value: Tensor, output: Tensor, rows: slice) -> bool:
    """output[tile.heads, rows] = weights . value, reading only values of weights that are not zero.

    value is (B, G, S, Dv), strided, float32 or bfloat16; False, and nothing done, for another type or layout.
    """
    if value.dtype not in (torch.float32, torch.bfloat16) or value.stride(-1) != 1:
        return False
    kv_heads = value.shape[1]
    offsets = torch.tensor(
        [
            (head // kv_heads) * value.stride(0) + (head % kv_heads) * value.stride(1) + tile.keys.start * value.stride(2)
            for head in range(tile.heads.start, tile.heads.stop)
        ],
        dtype=torch.int64,
    )
    _library().open_values(
        pointer(weights),
        *weights.shape,
        pointer(value),
        pointer(offsets),
        value.stride(2),
        value.shape[-1],
        value.dtype is torch.bfloat16,
        pointer(output[tile.heads, rows]),
        output.stride(0),
    )
    return True


def _library() -> ctypes.CDLL:
    loaded = library()
    assert loaded is not None, "callers ask library() first"
    return loaded


def _block(problem: "Problem", tile: "Tile", scores: Tensor) -> Block:
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
        seeds=pointer(problem.seeds),
        sharpness=formula.sharpness,
        scaling=formula.scaling,
        softcap=formula.softcap,
        normalised=formula.normalised,
        renormalise=formula.renormalise,
        lse=pointer(problem.lse),
        mass=pointer(problem.mass),
    )
