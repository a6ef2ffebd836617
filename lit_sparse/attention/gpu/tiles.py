"""Blocks of rows in memory, and the tiles of keys and queries that a mask lets see each other.

A tile is interior where each of its rows sees each of its keys: it needs neither the mask nor bounds. Kernels sweep
over the interior tiles, then over the others; WITHIN says which.
"""

import triton
import triton.language as tl

_SCAN = tl.constexpr(1024)


@triton.jit
def load(pointer, index, count, stride, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, WITHIN: tl.constexpr = False):
    """Rows `index` of a (count, DIM) matrix, zeros outside of it.

    WITHIN: all of them lie inside.
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
    dim = tl.arange(0, BLOCK_DIM)
    pointers = pointer + index[:, None] * stride + dim[None, :]
    tl.store(pointers, x.to(pointer.dtype.element_ty), mask=(index[:, None] < count) & (dim[None, :] < DIM))


@triton.jit
def interval(start, stop, row, rows, keys):
    """First and one past the last key of each row; (keys, 0) for a row that sees none."""
    first = tl.maximum(tl.load(start + row, mask=row < rows, other=0), 0)
    last = tl.minimum(tl.load(stop + row, mask=row < rows, other=0), keys)
    return tl.where(first < last, first, keys), tl.where(first < last, last, 0)


@triton.jit
def tiles_of(first, last, row, rows, keys, BLOCK_KEYS: tl.constexpr):
    """The tiles of keys that a block of rows sees, as keys: from, to; and those between that every row sees whole."""
    low, high = tl.min(first) // BLOCK_KEYS * BLOCK_KEYS, tl.max(last)
    # Rows past the end are stored nowhere and see what the others see.
    inner = tl.cdiv(tl.max(tl.where(row < rows, first, 0)), BLOCK_KEYS) * BLOCK_KEYS
    outer = tl.min(tl.where(row < rows, last, keys)) // BLOCK_KEYS * BLOCK_KEYS
    return low, high, inner, tl.maximum(inner, outer)


@triton.jit
def tile(index, low, inner, outer, BLOCK: tl.constexpr, WITHIN: tl.constexpr):
    """Where a tile begins: of those between `inner` and `outer`, or of the others, which lie on both sides."""
    if WITHIN:
        return inner + index * BLOCK
    at = low + index * BLOCK
    return tl.where(at < inner, at, at + (outer - inner))


@triton.jit
def count(low, high, inner, outer, BLOCK: tl.constexpr, WITHIN: tl.constexpr):
    if WITHIN:
        return (outer - inner) // BLOCK
    return tl.cdiv(tl.maximum(high - low, 0) - (outer - inner), BLOCK)


@triton.jit
def rows_that_see(start, stop, low, high, rows, keys):
    """First and one past the last row that sees one of the keys low <= key < high; (rows, 0) for none. And of those
    that see all of them, where these follow each other; else (0, 0).

    Reads every row's interval: 8 bytes a row, next to the hundreds of its query and output gradient.
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
