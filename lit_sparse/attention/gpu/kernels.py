"""Gated attention as three Triton kernels, in the manner of FlashAttention-2 (arXiv 2307.08691).

    forward_kernel    a block of queries against its keys: output, log-sum-exp, edge counts of a row
    query_kernel      a block of queries against its keys: dq, and the row sums that the next one needs
    key_kernel        a block of keys against the queries that see it: dk, dv and the offset's gradient

Formulas and names are those of `lit_sparse.attention.operator`. Nothing is summed with atomics: results are the same
from run to run. Products take the inputs' dtype, everything else is float32. Logits and log-sum-exps are in base 2 in
here, since the hardware's exponential is exp2. Scaling is positive. Where rows come first, a block's columns are keys
in the order of `noise.columns`.
"""

import math

import triton
import triton.language as tl

from lit_sparse.attention.gpu import noise

_LOG2_E = tl.constexpr(math.log2(math.e))
_LN_2 = tl.constexpr(math.log(2.0))
_SCAN = tl.constexpr(1024)
SIZES = ["mask_batch", "heads", "group", "rows", "keys"]  # one kernel serves all lengths


@triton.jit
def _load(pointer, index, count, stride, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, WITHIN: tl.constexpr = False):
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
def _load_row(pointer, index, count, other, WITHIN: tl.constexpr):
    """Numbers `index` of `count`, else `other`."""
    if WITHIN:
        return tl.load(pointer + index)
    return tl.load(pointer + index, mask=index < count, other=other)


@triton.jit
def _store(pointer, index, count, stride, x, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    dim = tl.arange(0, BLOCK_DIM)
    pointers = pointer + index[:, None] * stride + dim[None, :]
    tl.store(pointers, x.to(pointer.dtype.element_ty), mask=(index[:, None] < count) & (dim[None, :] < DIM))


@triton.jit
def _interval(start, stop, row, rows, keys):
    """First and one past the last key of each row; (keys, 0) for a row that sees none."""
    first = tl.maximum(tl.load(start + row, mask=row < rows, other=0), 0)
    last = tl.minimum(tl.load(stop + row, mask=row < rows, other=0), keys)
    return tl.where(first < last, first, keys), tl.where(first < last, last, 0)


@triton.jit
def _tanh(x):
    """tanh to float32's relative precision; the quotient alone would lose it near 0."""
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    far = 1 - 2 / (1 + tl.exp2(tl.abs(x) * (2 * _LOG2_E)))
    return tl.where(tl.abs(x) < 0.3, series, tl.where(x > 0, far, -far))


@triton.jit
def _scores(a, b, scaling, softcap, CAPPED: tl.constexpr):
    """a b^T as scores, of which `_unit` times are the base-2 logits, and the soft cap's slope."""
    s = tl.dot(a, tl.trans(b), input_precision="ieee")
    slope = 1.0
    if CAPPED:
        s = _tanh(s * (scaling / softcap))
        slope = 1 - s * s
    return s, slope


@triton.jit
def _unit(scaling, softcap, CAPPED: tl.constexpr):
    return softcap * _LOG2_E if CAPPED else scaling * _LOG2_E


@triton.jit
def _seen(s, key, first, last):
    """The scores, -inf where a row does not see a key."""
    return tl.where((key >= first) & (key < last), s, float("-inf"))


@triton.jit
def _tiles(first, last, row, rows, keys, BLOCK_KEYS: tl.constexpr):
    """The tiles of keys that a block of rows sees, as keys: from, to; and those between that every row sees whole."""
    low, high = tl.min(first) // BLOCK_KEYS * BLOCK_KEYS, tl.max(last)
    # Rows past the end are stored nowhere and see what the others see.
    inner = tl.cdiv(tl.max(tl.where(row < rows, first, 0)), BLOCK_KEYS) * BLOCK_KEYS
    outer = tl.min(tl.where(row < rows, last, keys)) // BLOCK_KEYS * BLOCK_KEYS
    return low, high, inner, tl.maximum(inner, outer)


@triton.jit
def _tile(index, low, inner, outer, BLOCK: tl.constexpr, WITHIN: tl.constexpr):
    """Where a tile begins: of those between `inner` and `outer`, or of the others, which lie on both sides."""
    if WITHIN:
        return inner + index * BLOCK
    at = low + index * BLOCK
    return tl.where(at < inner, at, at + (outer - inner))


@triton.jit
def _tile_count(low, high, inner, outer, BLOCK: tl.constexpr, WITHIN: tl.constexpr):
    if WITHIN:
        return (outer - inner) // BLOCK
    return tl.cdiv(tl.maximum(high - low, 0) - (outer - inner), BLOCK)


@triton.jit
def _raised(offset, index, keys, sharpness, WITHIN: tl.constexpr):
    """What keys' offsets add to base-2 gate logits."""
    return _load_row(offset, index, keys, 0.0, WITHIN).to(tl.float32) * (sharpness * _LOG2_E)


if triton.knobs.runtime.interpret:

    @triton.jit
    def _reciprocal(x):
        return 1 / x

    @triton.jit
    def _again(x):
        return x

else:

    @triton.jit
    def _reciprocal(x):
        """1 / x to a unit in the last place, 0 for infinite x: one instruction, where a division takes eight."""
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )

    @triton.jit
    def _again(x):
        """x; addresses made from it are computed here, and not kept in registers from before a loop."""
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _gates(z, u, SAMPLED: tl.constexpr):
    """From negative base-2 gate logits and the noise: probability e, (1 - e) / e, and whether open.

    The odds are kept finite; where they were not, e is 0.
    """
    odds = tl.exp2(z)
    e = _reciprocal(1 + odds)
    return e, tl.minimum(odds, 1e30), u < e if SAMPLED else z < 0


@triton.jit
def _accumulated(s, unit, top, total):
    """The online softmax's step (arXiv 1805.02867): new maximum and total, the factor of older sums, and exp(s)."""
    new = tl.maximum(top, tl.max(s, 1) * unit)
    shift = tl.where(new == float("-inf"), 0.0, new)
    factor = tl.exp2(top - shift)
    p = tl.exp2(s * unit - shift[:, None])
    return new, total * factor + tl.sum(p, 1), factor, p


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    query, key, value, start, stop, cutoff, offset, seeds, sharpness, output, lse, mass, counts,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row, mask_batch,
    heads, group, rows, keys, scaling, softcap,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr,
    NORMALISED: tl.constexpr, RENORMALISE: tl.constexpr, CAPPED: tl.constexpr, SAMPLED: tl.constexpr,
    WEIGHED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Program (row block, batch and head). Normalised gates take a sweep over the keys for the log-sum-exp first."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # under a causal mask the last rows take longest
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    query += batch * query_batch + head.to(tl.int64) * query_head
    key += batch * key_batch + (head // group).to(tl.int64) * key_head
    value += batch * value_batch + (head // group).to(tl.int64) * value_head
    if WEIGHED:
        offset += (batch * (heads // group) + head // group) * keys
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    first, last = _interval(start + batch * mask_batch, stop + batch * mask_batch, row, rows, keys)
    low, high, inner, outer = _tiles(first, last, row, rows, keys, BLOCK_KEYS)
    unit = _unit(scaling, softcap, CAPPED)
    column = noise.columns(BLOCK_KEYS)
    q = _load(query, row, rows, query_row, DIM, BLOCK_DIM)

    sharpness = tl.load(sharpness)
    shift = tl.zeros((BLOCK_ROWS,), tl.float32) + tl.load(cutoff + head).to(tl.float32) * _LOG2_E
    top = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    normaliser = tl.zeros((BLOCK_ROWS,), tl.float32)
    if NORMALISED:
        for phase in tl.static_range(2):
            tiles = _tile_count(low, high, inner, outer, BLOCK_KEYS, phase == 0)
            for index in tl.range(0, tiles, disable_licm=True, num_stages=1 if phase == 1 else None):
                at = _tile(index, low, inner, outer, BLOCK_KEYS, phase == 0)
                k = _load(key, at + column, keys, key_row, DIM, BLOCK_DIM, phase == 0)
                s, _ = _scores(q, k, scaling, softcap, CAPPED)
                if phase == 1:
                    s = _seen(s, (at + column)[None, :], first[:, None], last[:, None])
                top, total, _, _ = _accumulated(s, unit, top, total)
        # As the backward will read it, so that both see the same gates.
        normaliser = tl.where(total > 0, top + tl.log2(total), float("inf")) * _LN_2 * _LOG2_E
        shift += normaliser

    shift *= sharpness
    slope = sharpness * unit
    seed = tl.load(seeds + batch) if SAMPLED else 0
    sums = tl.zeros((BLOCK_ROWS, BLOCK_VALUE), tl.float32)
    open_mass = tl.zeros((BLOCK_ROWS,), tl.float32)
    probable = tl.zeros((BLOCK_ROWS,), tl.float32)
    count = tl.zeros((BLOCK_ROWS,), tl.float32)
    for phase in tl.static_range(2):
        tiles = _tile_count(low, high, inner, outer, BLOCK_KEYS, phase == 0)
        for index in tl.range(0, tiles, disable_licm=True, num_stages=1 if phase == 1 else None):
            at = _tile(index, low, inner, outer, BLOCK_KEYS, phase == 0)
            k = _load(key, at + column, keys, key_row, DIM, BLOCK_DIM, phase == 0)
            v = _load(value, at + column, keys, value_row, VALUE_DIM, BLOCK_VALUE, phase == 0)
            s, _ = _scores(q, k, scaling, softcap, CAPPED)
            if phase == 1:
                s = _seen(s, (at + column)[None, :], first[:, None], last[:, None])
            if NORMALISED:
                p = tl.exp2(s * unit - normaliser[:, None])
            else:
                top, total, factor, p = _accumulated(s, unit, top, total)
                sums *= factor[:, None]
                open_mass *= factor
            z = shift[:, None]
            if WEIGHED:
                z -= _raised(offset, at + column, keys, sharpness, phase == 0)[None, :]
            z -= s * slope
            u = 0.0
            if SAMPLED:
                u = noise.uniform(seed, head, row, at, BLOCK_ROWS, BLOCK_KEYS)
            e, _, is_open = _gates(z, u, SAMPLED)
            p = tl.where(is_open, p, 0.0)
            if RENORMALISE:
                open_mass += tl.sum(p, 1)
            probable += tl.sum(e, 1)
            count += tl.sum(is_open.to(tl.float32), 1)
            sums = tl.dot(p.to(v.dtype), v, sums, input_precision="ieee")

    if not NORMALISED:
        normaliser = tl.where(total > 0, top + tl.log2(total), float("inf"))
        share = tl.where(total > 0, 1 / total, 0.0)
        sums *= share[:, None]
        open_mass *= share
    here = tl.program_id(1).to(tl.int64) * rows + row
    if RENORMALISE:
        open_mass = tl.where(open_mass > 0, open_mass, 1.0)
        sums *= (1 / open_mass)[:, None]
        tl.store(mass + here, open_mass, mask=row < rows)
    tl.store(lse + here, normaliser * _LN_2, mask=row < rows)
    counts += tl.program_id(1).to(tl.int64) * 3 * rows + row
    tl.store(counts, probable, mask=row < rows)
    tl.store(counts + rows, count, mask=row < rows)
    tl.store(counts + 2 * rows, tl.maximum(last - first, 0).to(tl.float32), mask=row < rows)
    output += (batch * rows * heads + head) * VALUE_DIM
    _store(output, row, rows, heads * VALUE_DIM, sums, VALUE_DIM, BLOCK_VALUE)


@triton.jit
def _gradients(
    s, g, u, unit, normaliser, shift, slope, delta, inverse_mass, pull, d_expected, sharpness,
    RENORMALISE: tl.constexpr, SAMPLED: tl.constexpr,
):  # fmt: skip
    """Of a block of edges: p, the weight w, ds = p (A G - pull) + c, and c / sharpness.

    With y = (1 - e) / e, e (1 - e) is y e^2. With x = 1 - u, which is never 0, t is x / (x + u y), so that t (1 - t) is
    y u x / (x + u y)^2.
    """
    p = tl.exp2(s * unit - normaliser)
    e, y, is_open = _gates(shift - s * slope, u, SAMPLED)
    if RENORMALISE:
        g = (g - delta) * inverse_mass
    pg = p * g
    c = d_expected * e * e
    if SAMPLED:
        x = 1 - u
        inverse = _reciprocal(x + u * y)
        c += pg * (u * x * (inverse * inverse))
    c *= y
    w = tl.where(is_open, p, 0.0)
    if RENORMALISE:
        w *= inverse_mass
    ds = tl.where(is_open, pg, 0.0) - p * pull + sharpness * c
    return p, w, ds, c


@triton.jit(do_not_specialize=SIZES)
def query_kernel(
    query, key, value, start, stop, cutoff, offset, seeds, sharpness, output, lse, mass, d_output, d_expected,
    d_query, row_delta, row_sum,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row, mask_batch,
    heads, group, rows, keys, scaling, softcap,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr,
    NORMALISED: tl.constexpr, RENORMALISE: tl.constexpr, CAPPED: tl.constexpr, SAMPLED: tl.constexpr,
    WEIGHED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Program (row block, batch and head). Stores delta_i and sum_k c_ik.

    The sum is only known at the end of the sweep, so dq = scaling (sum_j (ds + c)_ij k_j - (sum_k c_ik) sum_j p_ij k_j)
    is put together from two products.
    """
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    query += batch * query_batch + head.to(tl.int64) * query_head
    key += batch * key_batch + (head // group).to(tl.int64) * key_head
    value += batch * value_batch + (head // group).to(tl.int64) * value_head
    if WEIGHED:
        offset += (batch * (heads // group) + head // group) * keys
    output += (batch * rows * heads + head) * VALUE_DIM
    d_output += (batch * rows * heads + head) * VALUE_DIM
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    here = tl.program_id(1).to(tl.int64) * rows + row
    first, last = _interval(start + batch * mask_batch, stop + batch * mask_batch, row, rows, keys)
    low, high, inner, outer = _tiles(first, last, row, rows, keys, BLOCK_KEYS)
    unit = _unit(scaling, softcap, CAPPED)
    column = noise.columns(BLOCK_KEYS)

    q = _load(query, row, rows, query_row, DIM, BLOCK_DIM)
    do = _load(d_output, row, rows, heads * VALUE_DIM, VALUE_DIM, BLOCK_VALUE)
    o = _load(output, row, rows, heads * VALUE_DIM, VALUE_DIM, BLOCK_VALUE)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    normaliser = tl.load(lse + here, mask=row < rows, other=float("inf")) * _LOG2_E
    inverse_mass = delta
    if RENORMALISE:
        inverse_mass = 1 / tl.load(mass + here, mask=row < rows, other=1.0)
    sharpness = tl.load(sharpness)
    shift = tl.zeros((BLOCK_ROWS,), tl.float32) + tl.load(cutoff + head).to(tl.float32) * _LOG2_E
    if NORMALISED:
        shift += normaliser
    shift *= sharpness
    slope = sharpness * unit
    pull = tl.zeros_like(delta) if RENORMALISE else delta
    d_edges = tl.load(d_expected + tl.program_id(1))
    seed = tl.load(seeds + batch) if SAMPLED else 0

    dq = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
    mean_key = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
    sums = tl.zeros((BLOCK_ROWS,), tl.float32)
    for phase in tl.static_range(2):
        tiles = _tile_count(low, high, inner, outer, BLOCK_KEYS, phase == 0)
        for index in tl.range(0, tiles, disable_licm=True, num_stages=1 if phase == 1 else None):
            at = _tile(index, low, inner, outer, BLOCK_KEYS, phase == 0)
            k = _load(key, at + column, keys, key_row, DIM, BLOCK_DIM, phase == 0)
            v = _load(value, at + column, keys, value_row, VALUE_DIM, BLOCK_VALUE, phase == 0)
            s, cap_slope = _scores(q, k, scaling, softcap, CAPPED)
            if phase == 1:
                s = _seen(s, (at + column)[None, :], first[:, None], last[:, None])
            g = tl.dot(do, tl.trans(v), input_precision="ieee")
            u = 0.0
            if SAMPLED:
                u = noise.uniform(seed, head, row, at, BLOCK_ROWS, BLOCK_KEYS)
            shifts = shift[:, None]
            if WEIGHED:
                shifts -= _raised(offset, at + column, keys, sharpness, phase == 0)[None, :]
            p, _, ds, c = _gradients(
                s, g, u, unit, normaliser[:, None], shifts, slope, delta[:, None], inverse_mass[:, None], pull[:, None],
                d_edges, sharpness, RENORMALISE, SAMPLED,
            )  # fmt: skip
            sums += tl.sum(c, 1)
            dq = tl.dot((ds * cap_slope).to(k.dtype), k, dq, input_precision="ieee")
            if NORMALISED:
                mean_key = tl.dot((p * cap_slope).to(k.dtype), k, mean_key, input_precision="ieee")
    sums *= sharpness
    if NORMALISED:
        dq -= sums[:, None] * mean_key
    row = _again(block) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    here = tl.program_id(1).to(tl.int64) * rows + row
    tl.store(row_delta + here, delta, mask=row < rows)
    tl.store(row_sum + here, sums, mask=row < rows)
    d_query += tl.program_id(1).to(tl.int64) * rows * DIM
    _store(d_query, row, rows, DIM, dq * scaling, DIM, BLOCK_DIM)


@triton.jit
def _rows_that_see(start, stop, low, high, rows, keys):
    """First and one past the last row that sees one of the keys low <= key < high; (rows, 0) for none. And of those
    that see all of them, where these follow each other; else (0, 0).

    Reads every row's interval: 8 bytes a row, next to the hundreds of its query and output gradient.
    """
    lowest, highest = rows, 0
    first_whole, last_whole, whole = rows, 0, 0
    for at in range(0, rows, _SCAN):
        row = at + tl.arange(0, _SCAN)
        first, last = _interval(start, stop, row, rows, keys)
        sees = (first < high) & (last > low)
        lowest = tl.minimum(lowest, tl.min(tl.where(sees, row, rows)))
        highest = tl.maximum(highest, tl.max(tl.where(sees, row + 1, 0)))
        sees = (first <= low) & (last >= high)
        first_whole = tl.minimum(first_whole, tl.min(tl.where(sees, row, rows)))
        last_whole = tl.maximum(last_whole, tl.max(tl.where(sees, row + 1, 0)))
        whole += tl.sum(sees.to(tl.int32))
    gapless = whole == last_whole - first_whole
    return lowest, highest, tl.where(gapless, first_whole, 0), tl.where(gapless, last_whole, 0)


@triton.jit(do_not_specialize=SIZES)
def key_kernel(
    query, key, value, start, stop, cutoff, offset, seeds, sharpness, lse, mass, d_output, d_expected,
    row_delta, row_sum, d_key, d_value, d_offset,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row, mask_batch,
    heads, group, rows, keys, scaling, softcap,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr,
    NORMALISED: tl.constexpr, RENORMALISE: tl.constexpr, CAPPED: tl.constexpr, SAMPLED: tl.constexpr,
    WEIGHED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Program (key block, batch and key head); the queries of all heads of the group, in order."""
    low = tl.program_id(0) * BLOCK_KEYS
    batch = (tl.program_id(1) // (heads // group)).to(tl.int64)
    kv_head = tl.program_id(1) % (heads // group)
    start += batch * mask_batch
    stop += batch * mask_batch
    key_index = low + noise.columns(BLOCK_KEYS)
    k = _load(key + batch * key_batch + kv_head.to(tl.int64) * key_head, key_index, keys, key_row, DIM, BLOCK_DIM)
    v = _load(
        value + batch * value_batch + kv_head.to(tl.int64) * value_head,
        key_index, keys, value_row, VALUE_DIM, BLOCK_VALUE,
    )  # fmt: skip
    first_row, last_row, inner, outer = _rows_that_see(start, stop, low, low + BLOCK_KEYS, rows, keys)
    first_row = first_row // BLOCK_ROWS * BLOCK_ROWS
    inner = tl.cdiv(inner, BLOCK_ROWS) * BLOCK_ROWS
    outer = tl.maximum(inner, outer // BLOCK_ROWS * BLOCK_ROWS)

    unit = _unit(scaling, softcap, CAPPED)
    seed = tl.load(seeds + batch) if SAMPLED else 0
    sharpness = tl.load(sharpness)
    slope = sharpness * unit
    dk = tl.zeros((BLOCK_KEYS, BLOCK_DIM), tl.float32)
    dv = tl.zeros((BLOCK_KEYS, BLOCK_VALUE), tl.float32)
    if WEIGHED:
        raised = _raised(offset + tl.program_id(1).to(tl.int64) * keys, key_index, keys, sharpness, False)
        key_sums = tl.zeros((BLOCK_ROWS // 16, 8, BLOCK_KEYS), tl.float32)
    for phase in tl.static_range(2):
        tiles = _tile_count(first_row, last_row, inner, outer, BLOCK_ROWS, phase == 0)
        for index in tl.range(0, group * tiles, disable_licm=True, num_stages=1 if phase == 1 else None):
            head = kv_head * group + index // tiles
            both = batch * heads + head
            rows_end = (both + 1) * rows
            at = _tile(index % tiles, first_row, inner, outer, BLOCK_ROWS, phase == 0)
            cut = tl.load(cutoff + head).to(tl.float32) * _LOG2_E
            d_edges = tl.load(d_expected + both)
            row = at + tl.arange(0, BLOCK_ROWS)
            here = both * rows + row
            q = _load(
                query + batch * query_batch + head.to(tl.int64) * query_head,
                row, rows, query_row, DIM, BLOCK_DIM, phase == 0,
            )  # fmt: skip
            do = _load(
                d_output + (batch * rows * heads + head) * VALUE_DIM,
                row, rows, heads * VALUE_DIM, VALUE_DIM, BLOCK_VALUE, phase == 0,
            )  # fmt: skip
            normaliser = _load_row(lse, here, rows_end, float("inf"), phase == 0) * _LOG2_E
            delta = _load_row(row_delta, here, rows_end, 0.0, phase == 0)
            pull = tl.zeros_like(delta) if RENORMALISE else delta
            if NORMALISED:
                pull += _load_row(row_sum, here, rows_end, 0.0, phase == 0)
            inverse_mass = delta
            if RENORMALISE:
                inverse_mass = 1 / _load_row(mass, here, rows_end, 1.0, phase == 0)
            shift = tl.zeros((BLOCK_ROWS,), tl.float32) + cut
            if NORMALISED:
                shift += normaliser
            shift *= sharpness
            s, cap_slope = _scores(q, k, scaling, softcap, CAPPED)
            if phase == 1:
                first, last = _interval(start, stop, row, rows, keys)
                s = _seen(s, key_index[None, :], first[:, None], last[:, None])
            g = tl.dot(do, tl.trans(v), input_precision="ieee")
            u = 0.0
            if SAMPLED:
                u = noise.uniform(seed, head, row, low, BLOCK_ROWS, BLOCK_KEYS)
            shifts = shift[:, None]
            if WEIGHED:
                shifts -= raised[None, :]
            _, w, ds, c = _gradients(
                s, g, u, unit, normaliser[:, None], shifts, slope, delta[:, None], inverse_mass[:, None],
                pull[:, None], d_edges, sharpness, RENORMALISE, SAMPLED,
            )  # fmt: skip
            if WEIGHED:
                # Inside a thread, which has two rows of sixteen; across threads after the loop.
                key_sums += tl.sum(tl.reshape(c, (BLOCK_ROWS // 16, 2, 8, BLOCK_KEYS)), 1)
            dv = tl.dot(tl.trans(w.to(do.dtype)), do, dv, input_precision="ieee")
            dk = tl.dot(tl.trans((ds * cap_slope).to(q.dtype)), q, dk, input_precision="ieee")

    key_index = _again(low) + noise.columns(BLOCK_KEYS)
    _store(d_key + tl.program_id(1).to(tl.int64) * keys * DIM, key_index, keys, DIM, dk * scaling, DIM, BLOCK_DIM)
    d_value += tl.program_id(1).to(tl.int64) * keys * VALUE_DIM
    _store(d_value, key_index, keys, VALUE_DIM, dv, VALUE_DIM, BLOCK_VALUE)
    if WEIGHED:
        d_offset += tl.program_id(1).to(tl.int64) * keys
        sums = tl.sum(tl.sum(key_sums, 1), 0) * sharpness
        tl.store(d_offset + key_index, sums.to(d_offset.dtype.element_ty), mask=key_index < keys)
