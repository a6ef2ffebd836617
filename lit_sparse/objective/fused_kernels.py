"""Triton kernels that `fused.py` launches."""

import triton
import triton.language as tl


@triton.jit
def forward_kernel(
    logits,
    base_logits,
    labels,
    ce,
    base_ce,
    kl,
    lse,
    base_lse,
    stride,
    base_stride,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
    IGNORED: tl.constexpr,
):
    """Online softmax of both rows. m is the largest logit so far. Each lane of the block sums its exp(x - m) and
    exp(y - m_y), and exp(y - m_y) (y - x) for the divergence; all are rescaled when m grows."""
    row = tl.program_id(0)
    label = tl.load(labels + row)
    if label == IGNORED:
        tl.store(ce + row, 0.0)
        tl.store(base_ce + row, 0.0)
        tl.store(kl + row, 0.0)
        tl.store(lse + row, 0.0)
        tl.store(base_lse + row, 0.0)
    else:
        # 64 bits: a batch has more than 2^31 logits
        x_row, y_row = logits + row.to(tl.int64) * stride, base_logits + row.to(tl.int64) * base_stride
        columns = tl.arange(0, BLOCK)
        x_max = -3e38  # finite, because a block may be all -inf
        y_max = -3e38
        x_sum = tl.zeros([BLOCK], tl.float32)
        y_sum = tl.zeros([BLOCK], tl.float32)
        cross = tl.zeros([BLOCK], tl.float32)
        for start in range(0, VOCABULARY, BLOCK):
            inside = columns < VOCABULARY - start
            x = tl.load(x_row + start + columns, inside, -float("inf")).to(tl.float32)
            y = tl.load(y_row + start + columns, inside, -float("inf")).to(tl.float32)
            x_new, y_new = tl.maximum(x_max, tl.max(x)), tl.maximum(y_max, tl.max(y))
            shrink = tl.exp(y_max - y_new)
            weight = tl.exp(y - y_new)
            x_sum = x_sum * tl.exp(x_max - x_new) + tl.exp(x - x_new)
            y_sum = y_sum * shrink + weight
            # -inf - -inf is no number; such tokens have no share
            cross = cross * shrink + tl.where(weight > 0, weight * (y - x), 0.0)
            x_max, y_max = x_new, y_new
        x_total, y_total = tl.sum(x_sum), tl.sum(y_sum)
        x_lse, y_lse = x_max + tl.log(x_total), y_max + tl.log(y_total)
        tl.store(ce + row, x_lse - tl.load(x_row + label).to(tl.float32))
        tl.store(base_ce + row, y_lse - tl.load(y_row + label).to(tl.float32))
        tl.store(kl + row, tl.sum(cross) / y_total - y_lse + x_lse)
        tl.store(lse + row, x_lse)
        tl.store(base_lse + row, y_lse)


@triton.jit
def backward_kernel(
    logits,
    base_logits,
    labels,
    lse,
    base_lse,
    d_ce,
    d_kl,
    gradient,
    stride,
    base_stride,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
    IGNORED: tl.constexpr,
):
    """(d_ce + d_kl) softmax - d_ce onehot - d_kl softmax_base."""
    row = tl.program_id(0)
    label = tl.load(labels + row)
    x_row, y_row = logits + row.to(tl.int64) * stride, base_logits + row.to(tl.int64) * base_stride
    out = gradient + row.to(tl.int64) * VOCABULARY
    columns = tl.arange(0, BLOCK)
    if label == IGNORED:
        for start in range(0, VOCABULARY, BLOCK):
            zero = tl.zeros([BLOCK], gradient.dtype.element_ty)
            tl.store(out + start + columns, zero, columns < VOCABULARY - start)
    else:
        x_lse, y_lse = tl.load(lse + row), tl.load(base_lse + row)
        entropy, divergence = tl.load(d_ce + row), tl.load(d_kl + row)
        for start in range(0, VOCABULARY, BLOCK):
            inside = columns < VOCABULARY - start
            x = tl.load(x_row + start + columns, inside, 0.0).to(tl.float32)
            y = tl.load(y_row + start + columns, inside, 0.0).to(tl.float32)
            step = (entropy + divergence) * tl.exp(x - x_lse) - divergence * tl.exp(y - y_lse)
            step -= tl.where(start + columns == label, entropy, 0.0)
            tl.store(out + start + columns, step.to(gradient.dtype.element_ty), inside)
