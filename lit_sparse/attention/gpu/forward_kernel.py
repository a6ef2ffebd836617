"""Gated attention forward as a Triton kernel, in the manner of FlashAttention-2 (arXiv 2307.08691).

    forward_kernel    a block of queries against its keys: output, log-sum-exp, edge counts of a row

Formulas and names are those of `lit_sparse.attention.operator`. Nothing is summed with atomics: results are the same
from run to run. Products take the inputs' dtype, everything else is float32. Logits and log-sum-exps are in base 2 in
here, since the hardware's exponential is exp2. Scaling is positive. A block's columns are keys in the order of
`noise.columns`. Each sweep goes over interior tiles first, then over those that need the mask (`tiles`).
"""

import triton
import triton.language as tl

from lit_sparse.attention.gpu import arithmetic, noise, tiles
from lit_sparse.attention.gpu.arithmetic import LN_2, LOG2_E

SIZES = ["mask_batch", "heads", "group", "rows", "keys"]  # one kernel serves all lengths


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
    first, last = tiles.interval(start + batch * mask_batch, stop + batch * mask_batch, row, rows, keys)
    low, high, inner, outer = tiles.tiles_of(first, last, row, rows, keys, BLOCK_KEYS)
    unit = arithmetic.unit(scaling, softcap, CAPPED)
    column = noise.columns(BLOCK_KEYS)
    q = tiles.load(query, row, rows, query_row, DIM, BLOCK_DIM)

    sharpness = tl.load(sharpness)
    shift = tl.zeros((BLOCK_ROWS,), tl.float32) + tl.load(cutoff + head).to(tl.float32) * LOG2_E
    top = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    normaliser = tl.zeros((BLOCK_ROWS,), tl.float32)
    if NORMALISED:
        for phase in tl.static_range(2):
            rounds = tiles.count(low, high, inner, outer, BLOCK_KEYS, phase == 0)
            for index in tl.range(0, rounds, disable_licm=True, num_stages=1 if phase == 1 else None):
                at = tiles.tile(index, low, inner, outer, BLOCK_KEYS, phase == 0)
                k = tiles.load(key, at + column, keys, key_row, DIM, BLOCK_DIM, phase == 0)
                s, _ = arithmetic.scores(q, k, scaling, softcap, CAPPED)
                if phase == 1:
                    s = arithmetic.seen(s, (at + column)[None, :], first[:, None], last[:, None])
                top, total, _, _ = arithmetic.accumulated(s, unit, top, total)
        # Rounded as the backward pass will read it, so that both have the same gates.
        normaliser = tl.where(total > 0, top + tl.log2(total), float("inf")) * LN_2 * LOG2_E
        shift += normaliser

    shift *= sharpness
    slope = sharpness * unit
    seed = tl.load(seeds + batch) if SAMPLED else 0
    sums = tl.zeros((BLOCK_ROWS, BLOCK_VALUE), tl.float32)
    open_mass = tl.zeros((BLOCK_ROWS,), tl.float32)
    probable = tl.zeros((BLOCK_ROWS,), tl.float32)
    count = tl.zeros((BLOCK_ROWS,), tl.float32)
    for phase in tl.static_range(2):
        rounds = tiles.count(low, high, inner, outer, BLOCK_KEYS, phase == 0)
        for index in tl.range(0, rounds, disable_licm=True, num_stages=1 if phase == 1 else None):
            at = tiles.tile(index, low, inner, outer, BLOCK_KEYS, phase == 0)
            k = tiles.load(key, at + column, keys, key_row, DIM, BLOCK_DIM, phase == 0)
            v = tiles.load(value, at + column, keys, value_row, VALUE_DIM, BLOCK_VALUE, phase == 0)
            s, _ = arithmetic.scores(q, k, scaling, softcap, CAPPED)
            if phase == 1:
                s = arithmetic.seen(s, (at + column)[None, :], first[:, None], last[:, None])
            if NORMALISED:
                p = tl.exp2(s * unit - normaliser[:, None])
            else:
                top, total, factor, p = arithmetic.accumulated(s, unit, top, total)
                sums *= factor[:, None]
                open_mass *= factor
            z = shift[:, None]
            if WEIGHED:
                z -= arithmetic.raised(offset, at + column, keys, sharpness, phase == 0)[None, :]
            z -= s * slope
            u = 0.0
            if SAMPLED:
                u = noise.uniform(seed, head, row, at, BLOCK_ROWS, BLOCK_KEYS)
            e, _, is_open = arithmetic.gates(z, u, SAMPLED)
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
    tl.store(lse + here, normaliser * LN_2, mask=row < rows)
    counts += tl.program_id(1).to(tl.int64) * 3 * rows + row
    tl.store(counts, probable, mask=row < rows)
    tl.store(counts + rows, count, mask=row < rows)
    tl.store(counts + 2 * rows, tl.maximum(last - first, 0).to(tl.float32), mask=row < rows)
    output += (batch * rows * heads + head) * VALUE_DIM
    tiles.store(output, row, rows, heads * VALUE_DIM, sums, VALUE_DIM, BLOCK_VALUE)
