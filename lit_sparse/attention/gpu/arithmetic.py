"""Arithmetic of an edge between the matrix products. Formulas and names are those of `lit_sparse.attention.operator`.

Logits and log-sum-exps are in base 2, since the hardware's exponential is exp2.
"""

import math

import triton
import triton.language as tl

from lit_sparse.attention.gpu import tiles

LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2.0))


if triton.knobs.runtime.interpret:

    @triton.jit
    def reciprocal(x):
        return 1 / x

    @triton.jit
    def again(x):
        return x

else:

    @triton.jit
    def reciprocal(x):
        """1 / x to a unit in the last place, 0 for infinite x: one instruction, where a division takes eight."""
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )

    @triton.jit
    def again(x):
        """x; addresses made from it are computed here, and not kept in registers from before a loop."""
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def tanh(x):
    """tanh to float32's relative precision; the quotient alone would lose it near 0."""
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    far = 1 - 2 / (1 + tl.exp2(tl.abs(x) * (2 * LOG2_E)))
    return tl.where(tl.abs(x) < 0.3, series, tl.where(x > 0, far, -far))


@triton.jit
def scores(a, b, scaling, softcap, CAPPED: tl.constexpr):
    """a b^T as scores, of which `_unit` times are the base-2 logits, and the soft cap's slope."""
    s = tl.dot(a, tl.trans(b), input_precision="ieee")
    slope = 1.0
    if CAPPED:
        s = tanh(s * (scaling / softcap))
        slope = 1 - s * s
    return s, slope


@triton.jit
def unit(scaling, softcap, CAPPED: tl.constexpr):
    """Factor from scores to base-2 logits."""
    return softcap * LOG2_E if CAPPED else scaling * LOG2_E


@triton.jit
def seen(s, key, first, last):
    """The scores, -inf where a row must not attend to a key."""
    return tl.where((key >= first) & (key < last), s, float("-inf"))


@triton.jit
def raised(offset, index, keys, sharpness, WITHIN: tl.constexpr):
    """Additions of the keys' offsets to base-2 gate logits."""
    return tiles.load_row(offset, index, keys, 0.0, WITHIN).to(tl.float32) * (sharpness * LOG2_E)


@triton.jit
def gates(z, u, SAMPLED: tl.constexpr):
    """Probability e, (1 - e) / e, and True if the gate is open, from negative base-2 gate logits and the noise.

    The odds are kept finite; where they were not, e is 0.
    """
    odds = tl.exp2(z)
    e = reciprocal(1 + odds)
    return e, tl.minimum(odds, 1e30), u < e if SAMPLED else z < 0


@triton.jit
def accumulated(s, unit, top, total):
    """The online softmax's step (arXiv 1805.02867): new maximum and total, the factor of older sums, and exp(s)."""
    new = tl.maximum(top, tl.max(s, 1) * unit)
    shift = tl.where(new == float("-inf"), 0.0, new)
    factor = tl.exp2(top - shift)
    p = tl.exp2(s * unit - shift[:, None])
    return new, total * factor + tl.sum(p, 1), factor, p


@triton.jit
def gradients(
    s, g, u, unit, normaliser, shift, slope, delta, inverse_mass, pull, d_expected, sharpness,
    RENORMALISE: tl.constexpr, SAMPLED: tl.constexpr,
):  # fmt: skip
    """p, the weight w, ds = p (A G - pull) + c, and c / sharpness of a block of edges.

    With y = (1 - e) / e, e (1 - e) is y e^2. With x = 1 - u, which is never 0, t is x / (x + u y), so that t (1 - t) is
    y u x / (x + u y)^2.
    """
    p = tl.exp2(s * unit - normaliser)
    e, y, is_open = gates(shift - s * slope, u, SAMPLED)
    if RENORMALISE:
        g = (g - delta) * inverse_mass
    pg = p * g
    c = d_expected * e * e
    if SAMPLED:
        x = 1 - u
        inverse = reciprocal(x + u * y)
        c += pg * (u * x * (inverse * inverse))
    c *= y
    w = tl.where(is_open, p, 0.0)
    if RENORMALISE:
        w *= inverse_mass
    ds = tl.where(is_open, pg, 0.0) - p * pull + sharpness * c
    return p, w, ds, c
