"""Backward pass of gated attention as two Triton kernels, with the conventions of `forward_kernel`.

query_kernel      a block of queries against its keys: dq, and the row sums that the next kernel needs
key_kernel        a block of keys against the queries that attend to it: dk, dv and the offset's gradient
"""

import triton
import triton.language as tl

from lit_sparse.attention.gpu import arithmetic, noise, tiles
from lit_sparse.attention.gpu.arithmetic import LOG2_E
from lit_sparse.attention.gpu.forward_kernel import SIZES


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
    first, last = tiles.interval(start + batch * mask_batch, stop + batch * mask_batch, row, rows, keys)
    low, high, inner, outer = tiles.tiles_of(first, last, row, rows, keys, BLOCK_KEYS)
    unit = arithmetic.unit(scaling, softcap, CAPPED)
    column = noise.columns(BLOCK_KEYS)

    q = tiles.load(query, row, rows, query_row, DIM, BLOCK_DIM)
    do = tiles.load(d_output, row, rows, heads * VALUE_DIM, VALUE_DIM, BLOCK_VALUE)
    o = tiles.load(output, row, rows, heads * VALUE_DIM, VALUE_DIM, BLOCK_VALUE)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    normaliser = tl.load(lse + here, mask=row < rows, other=float("inf")) * LOG2_E
    inverse_mass = delta
    if RENORMALISE:
        inverse_mass = 1 / tl.load(mass + here, mask=row < rows, other=1.0)
    sharpness = tl.load(sharpness)
    shift = tl.zeros((BLOCK_ROWS,), tl.float32) + tl.load(cutoff + head).to(tl.float32) * LOG2_E
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
        rounds = tiles.count(low, high, inner, outer, BLOCK_KEYS, phase == 0)
        for index in tl.range(0, rounds, disable_licm=True, num_stages=1 if phase == 1 else None):
            at = tiles.tile(index, low, inner, outer, BLOCK_KEYS, phase == 0)
            k = tiles.load(key, at + column, keys, key_row, DIM, BLOCK_DIM, phase == 0)
            v = tiles.load(value, at + column, keys, value_row, VALUE_DIM, BLOCK_VALUE, phase == 0)
            s, cap_slope = arithmetic.scores(q, k, scaling, softcap, CAPPED)
            if phase == 1:
                s = arithmetic.seen(s, (at + column)[None, :], first[:, None], last[:, None])
            g = tl.dot(do, tl.trans(v), input_precision="ieee")
            u = 0.0
            if SAMPLED:
                u = noise.uniform(seed, head, row, at, BLOCK_ROWS, BLOCK_KEYS)
            shifts = shift[:, None]
            if WEIGHED:
                shifts -= arithmetic.raised(offset, at + column, keys, sharpness, phase == 0)[None, :]
            p, _, ds, c = arithmetic.gradients(
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
    row = arithmetic.again(block) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    here = tl.program_id(1).to(tl.int64) * rows + row
    tl.store(row_delta + here, delta, mask=row < rows)
    tl.store(row_sum + here, sums, mask=row < rows)
    d_query += tl.program_id(1).to(tl.int64) * rows * DIM
    tiles.store(d_query, row, rows, DIM, dq * scaling, DIM, BLOCK_DIM)


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
    k = tiles.load(key + batch * key_batch + kv_head.to(tl.int64) * key_head, key_index, keys, key_row, DIM, BLOCK_DIM)
    v = tiles.load(
        value + batch * value_batch + kv_head.to(tl.int64) * value_head,
        key_index, keys, value_row, VALUE_DIM, BLOCK_VALUE,
    )  # fmt: skip
    first_row, last_row, inner, outer = tiles.rows_that_see(start, stop, low, low + BLOCK_KEYS, rows, keys)
    first_row = first_row // BLOCK_ROWS * BLOCK_ROWS
    inner = tl.cdiv(inner, BLOCK_ROWS) * BLOCK_ROWS
    outer = tl.maximum(inner, outer // BLOCK_ROWS * BLOCK_ROWS)

    unit = arithmetic.unit(scaling, softcap, CAPPED)
    seed = tl.load(seeds + batch) if SAMPLED else 0
    sharpness = tl.load(sharpness)
    slope = sharpness * unit
    dk = tl.zeros((BLOCK_KEYS, BLOCK_DIM), tl.float32)
    dv = tl.zeros((BLOCK_KEYS, BLOCK_VALUE), tl.float32)
    if WEIGHED:
        raised = arithmetic.raised(offset + tl.program_id(1).to(tl.int64) * keys, key_index, keys, sharpness, False)
        key_sums = tl.zeros((BLOCK_ROWS // 16, 8, BLOCK_KEYS), tl.float32)
    for phase in tl.static_range(2):
        rounds = tiles.count(first_row, last_row, inner, outer, BLOCK_ROWS, phase == 0)
        for index in tl.range(0, group * rounds, disable_licm=True, num_stages=1 if phase == 1 else None):
            head = kv_head * group + index // rounds
            both = batch * heads + head
            rows_end = (both + 1) * rows
            at = tiles.tile(index % rounds, first_row, inner, outer, BLOCK_ROWS, phase == 0)
            cut = tl.load(cutoff + head).to(tl.float32) * LOG2_E
            d_edges = tl.load(d_expected + both)
            row = at + tl.arange(0, BLOCK_ROWS)
            here = both * rows + row
            q = tiles.load(
                query + batch * query_batch + head.to(tl.int64) * query_head,
                row, rows, query_row, DIM, BLOCK_DIM, phase == 0,
            )  # fmt: skip
            do = tiles.load(
                d_output + (batch * rows * heads + head) * VALUE_DIM,
                row, rows, heads * VALUE_DIM, VALUE_DIM, BLOCK_VALUE, phase == 0,
            )  # fmt: skip
            normaliser = tiles.load_row(lse, here, rows_end, float("inf"), phase == 0) * LOG2_E
            delta = tiles.load_row(row_delta, here, rows_end, 0.0, phase == 0)
            pull = tl.zeros_like(delta) if RENORMALISE else delta
            if NORMALISED:
                pull += tiles.load_row(row_sum, here, rows_end, 0.0, phase == 0)
            inverse_mass = delta
            if RENORMALISE:
                inverse_mass = 1 / tiles.load_row(mass, here, rows_end, 1.0, phase == 0)
            shift = tl.zeros((BLOCK_ROWS,), tl.float32) + cut
            if NORMALISED:
                shift += normaliser
            shift *= sharpness
            s, cap_slope = arithmetic.scores(q, k, scaling, softcap, CAPPED)
            if phase == 1:
                first, last = tiles.interval(start, stop, row, rows, keys)
                s = arithmetic.seen(s, key_index[None, :], first[:, None], last[:, None])
            g = tl.dot(do, tl.trans(v), input_precision="ieee")
            u = 0.0
            if SAMPLED:
                u = noise.uniform(seed, head, row, low, BLOCK_ROWS, BLOCK_KEYS)
            shifts = shift[:, None]
            if WEIGHED:
                shifts -= raised[None, :]
            _, w, ds, c = arithmetic.gradients(
                s, g, u, unit, normaliser[:, None], shifts, slope, delta[:, None], inverse_mass[:, None],
                pull[:, None], d_edges, sharpness, RENORMALISE, SAMPLED,
            )  # fmt: skip
            if WEIGHED:
                # Inside a thread, which has two rows of sixteen; across threads after the loop.
                key_sums += tl.sum(tl.reshape(c, (BLOCK_ROWS // 16, 2, 8, BLOCK_KEYS)), 1)
            dv = tl.dot(tl.trans(w.to(do.dtype)), do, dv, input_precision="ieee")
            dk = tl.dot(tl.trans((ds * cap_slope).to(q.dtype)), q, dk, input_precision="ieee")

    key_index = arithmetic.again(low) + noise.columns(BLOCK_KEYS)
    tiles.store(d_key + tl.program_id(1).to(tl.int64) * keys * DIM, key_index, keys, DIM, dk * scaling, DIM, BLOCK_DIM)
    d_value += tl.program_id(1).to(tl.int64) * keys * VALUE_DIM
    tiles.store(d_value, key_index, keys, VALUE_DIM, dv, VALUE_DIM, BLOCK_VALUE)
    if WEIGHED:
        d_offset += tl.program_id(1).to(tl.int64) * keys
        sums = tl.sum(tl.sum(key_sums, 1), 0) * sharpness
        tl.store(d_offset + key_index, sums.to(d_offset.dtype.element_ty), mask=key_index < keys)
