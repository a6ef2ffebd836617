"""Blocks of rows in memory, and the tiles of queries and keys between which a mask allows edges.

A tile is interior if each of its rows may attend to each of its keys. It needs neither the mask nor bounds. Kernels
sweep over the interior tiles (WITHIN is true), then over the others.
"""

import triton
import triton.language as tl

_SCAN = tl.constexpr(1024)


@triton.jit
def load(pointer, index, count, stride, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, WITHIN: tl.constexpr = False):
    """Rows `index` of a (count, DIM) matrix, zeros outside of it.

    WITHIN: true if all of them lie inside.
    """
    dim = tl.arange(0, BLOCK_DIM)
    pointers = pointer + index[:, None] * stride + dim[None, :]
    if WITHIN and BLOCK_DIM == DIM:
        return tl.load(pointers)
    if WITHIN:
        return tl.load(pointers, mask=dim[None, :] < DIM, other=0.0)
    if BLOCK_DIM == DIM:
        return tl.load(pointers, mask=index[:, None] < count, other=0.0)
    return tl.load(pointers, mask=(index[:, None] < count) & (dim[None, :] < DIM), other=0.0)


@triton.jit
def load_row(pointer, index, count, other, WITHIN: tl.constexpr):
    """Numbers `index` of `count`, else `other`."""
    if WITHIN:
        return tl.load(pointer + index)
    return tl.load(pointer + index, mask=index < count, other=other)


@triton.jit
def store(pointer, index, count, stride, x, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Stores rows `index` of a (count, DIM) matrix, those inside of it."""
    dim = tl.arange(0, BLOCK_DIM)
    pointers = pointer + index[:, None] * stride + dim[None, :]
    tl.store(pointers, x.to(pointer.dtype.element_ty), mask=(index[:, None] < count) & (dim[None, :] < DIM))


@triton.jit
def interval(start, stop, row, rows, keys):
    """First and one past the last key of each row; (keys, 0) for a row without keys."""
    first = tl.maximum(tl.load(start + row, mask=row < rows, other=0), 0)
    last = tl.minimum(tl.load(stop + row, mask=row < rows, other=0), keys)
    return tl.where(first < last, first, keys), tl.where(first < last, last, 0)


@triton.jit
def tiles_of(first, last, row, rows, keys, BLOCK_KEYS: tl.constexpr):
    """First and last key of the tiles to which a block of rows may attend, then of the tiles interior for every row."""
    low, high = tl.min(first) // BLOCK_KEYS * BLOCK_KEYS, tl.max(last)
    # Rows past the end are not stored, and attend to the keys of the others.
    inner = tl.cdiv(tl.max(tl.where(row < rows, first, 0)), BLOCK_KEYS) * BLOCK_KEYS
    outer = tl.min(tl.where(row < rows, last, keys)) // BLOCK_KEYS * BLOCK_KEYS
    return low, high, inner, tl.maximum(inner, outer)


@triton.jit
def tile(index, low, inner, outer, BLOCK: tl.constexpr, WITHIN: tl.constexpr):
    """Start of a tile, among those between `inner` and `outer` or among the others, which lie on both sides."""
    if WITHIN:
        return inner + index * BLOCK
    at = low + index * BLOCK
    return tl.where(at < inner, at, at + (outer - inner))


@triton.jit
def count(low, high, inner, outer, BLOCK: tl.constexpr, WITHIN: tl.constexpr):
    """Number of tiles between `inner` and `outer`, or of the others."""
    if WITHIN:
        return (outer - inner) // BLOCK
    return tl.cdiv(tl.maximum(high - low, 0) - (outer - inner), BLOCK)


@triton.jit
def rows_that_see(start, stop, low, high, rows, keys):
    """First and one past the last row that may attend to any of the keys low <= key < high; (rows, 0) for none. Then
    the same for rows that may attend to all of them, if those rows are contiguous; else (0, 0).

    It reads every row's interval: 8 bytes per row, beside the hundreds of its query and output gradient.
    """
    lowest, highest = rows, 0
    first_whole, last_whole, whole = rows, 0, 0
    for at in range(0, rows, _SCAN):
        row = at + tl.arange(0, _SCAN)
        first, last = interval(start, stop, row, rows, keys)
        sees = (first < high) & (last > low)
        lowest = tl.minimum(lowest, tl.min(tl.where(sees, row, rows)))
        highest = tl.maximum(highest, tl.max(tl.where(sees, row + 1, 0)))
        sees = (first <= low) & (last >= high)
        first_whole = tl.minimum(first_whole, tl.min(tl.where(sees, row, rows)))
        last_whole = tl.maximum(last_whole, tl.max(tl.where(sees, row + 1, 0)))
        whole += tl.sum(sees.to(tl.int32))
    gapless = whole == last_whole - first_whole
    return lowest, highest, tl.where(gapless, first_whole, 0), tl.where(gapless, last_whole, 0)
