"""The noise of `lit_sparse.attention.noise` inside a kernel, bit for bit, in the registers of the logits.

A Philox counter serves four neighbouring keys. A tensor core's accumulator gives a thread two neighbouring columns out
of every eight (PTX ISA, register fragments of mma.m16n8k16 and wgmma.m64nNk16). With keys in their natural order the
words would have to move between threads. The order of keys does not change the softmax, so the kernels load a block's
keys in the order of `columns`, where a thread's columns 2c, 2c+1, 2c+8, 2c+9 of sixteen are the keys 4c, ..., 4c+3.
"""

import triton
import triton.language as tl

from lit_sparse.attention import noise

_ROUNDS = tl.constexpr(noise.ROUNDS)
_M0, _M1 = (tl.constexpr(word) for word in noise._MULTIPLIERS)
_W0, _W1 = (tl.constexpr(word) for word in noise._WEYL)
_ONE = tl.constexpr(0x3F800000)  # the float 1 as bits


@triton.jit
def columns(BLOCK_KEYS: tl.constexpr):
    """(BLOCK_KEYS,) the key, relative to the block's first one, in each column of a block; a multiple of 16 of them."""
    column = tl.arange(0, BLOCK_KEYS)
    return (column & -16) | ((column & 6) << 1) | ((column & 8) >> 2) | (column & 1)


@triton.jit
def _halves(x, MULTIPLIER: tl.constexpr):
    """High and low word of a 32 x 32 bit product; as one 64-bit product it is one instruction."""
    product = x.to(tl.uint64) * MULTIPLIER
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def _philox(seed, c0, c1, c2):
    """The four words of the counters (c0, c1, c2, 0), which broadcast; as they only grow where they mix, the first
    two of the rounds cost next to nothing."""
    c3 = tl.zeros_like(c2)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        high0, low0 = _halves(c0, _M0)
        high1, low1 = _halves(c2, _M1)
        c0, c1, c2, c3 = high1 ^ (c1 ^ k0), low1, high0 ^ (c3 ^ k1), low0
        k0 = tl.add(k0, _W0, sanitize_overflow=False)
        k1 = tl.add(k1, _W1, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _number(word):
    """((word >> 9) + 1/2) 2^-23 without a conversion: a float in [1, 2) with these 23 bits, less 1 - 2^-24; exact."""
    return ((word >> 9) | _ONE).to(tl.float32, bitcast=True) - (1.0 - 2.0**-24)


@triton.jit
def uniform(seed, head, row, first_key, BLOCK_ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr):
    """(BLOCK_ROWS, BLOCK_KEYS) numbers in (0, 1) of the rows (BLOCK_ROWS,) and the keys `first_key + columns`."""
    counter = (first_key // 4 + tl.arange(0, BLOCK_KEYS // 4)).to(tl.uint32)
    high = tl.zeros((1, 1), tl.uint32) + head.to(tl.uint32)
    c0, c1, c2, c3 = _philox(seed, counter[None, :], row.to(tl.uint32)[:, None], high)
    words = tl.join(tl.join(c0, c1), tl.join(c2, c3))
    # (row, tile, thread, neighbour, half) to (row, tile, half, thread, neighbour)
    words = tl.permute(tl.reshape(words, (BLOCK_ROWS, BLOCK_KEYS // 16, 4, 2, 2)), (0, 1, 4, 2, 3))
    return _number(tl.reshape(words, (BLOCK_ROWS, BLOCK_KEYS)))
