"""Block sizes, and the host side of the kernels."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lit_sparse.attention.gpu import MAX_DIM, backward_kernels, forward_kernel
from lit_sparse.attention.interface import Formula, Forward, Gradients
from lit_sparse.attention.masks import EdgeMask


class Blocks(NamedTuple):
    """A launch configuration: queries and keys of a block, warps, and stages of the software pipeline."""

    rows: int
    keys: int
    warps: int
    stages: int


KERNELS = {
    "forward": forward_kernel.forward_kernel,
    "query": backward_kernels.query_kernel,
    "key": backward_kernels.key_kernel,
}

# By kernel, bytes of an element and largest head dimension: what to choose from on compute capability 9.0 (wgmma) and
# on all others (mma.sync), the default first. Defaults spill no registers, but for a few addresses in the loops of the
# key kernel on 9.0 at D = 128 or with offsets, and for queries in float32 at D = 256 (benchmarks/gpu_kernels.py). The
# choices for 9.0 are like the fastest of those timed on an H200 (benchmarks/results/gpu_h200/blocks.json); the others
# fit into the 99 KB of shared memory that a consumer GPU gives a block.
BLOCKS: dict[tuple[str, int, int], tuple[list[Blocks], list[Blocks]]] = {
    ("forward", 2, 64): (
        [Blocks(128, 64, 8, 2), Blocks(64, 64, 4, 3), Blocks(64, 32, 4, 3)],
        [Blocks(128, 64, 8, 1), Blocks(128, 32, 8, 2)],
    ),
    ("forward", 2, 128): (
        [Blocks(128, 64, 8, 2), Blocks(64, 64, 4, 2)],
        [Blocks(128, 32, 8, 1), Blocks(128, 32, 8, 2)],
    ),
    ("forward", 2, 256): ([Blocks(128, 16, 8, 2)], [Blocks(32, 32, 8, 1), Blocks(64, 32, 8, 2)]),
    ("query", 2, 64): (
        [Blocks(64, 64, 4, 2), Blocks(64, 32, 4, 3)],
        [Blocks(128, 32, 8, 2), Blocks(64, 32, 4, 2)],
    ),
    ("query", 2, 128): ([Blocks(128, 32, 8, 2), Blocks(64, 32, 4, 3)], [Blocks(128, 16, 8, 2), Blocks(128, 32, 8, 2)]),
    ("query", 2, 256): ([Blocks(32, 32, 8, 1)], [Blocks(32, 32, 8, 1)]),
    ("key", 2, 64): (
        [Blocks(128, 64, 8, 1), Blocks(128, 64, 8, 2), Blocks(64, 64, 4, 1)],
        [Blocks(64, 32, 4, 2), Blocks(64, 32, 4, 1)],
    ),
    ("key", 2, 128): ([Blocks(128, 64, 8, 2), Blocks(128, 64, 8, 1)], [Blocks(64, 64, 8, 2), Blocks(32, 64, 4, 2)]),
    ("key", 2, 256): ([Blocks(32, 32, 8, 1)], [Blocks(32, 32, 8, 1)]),
    ("forward", 4, 64): ([Blocks(32, 32, 8, 1)], [Blocks(32, 32, 8, 1)]),
    ("forward", 4, 128): ([Blocks(16, 16, 4, 1)], [Blocks(32, 32, 8, 1)]),
    ("forward", 4, 256): ([Blocks(16, 32, 8, 1)], [Blocks(16, 32, 8, 1)]),
    ("query", 4, 64): ([Blocks(32, 32, 8, 1)], [Blocks(32, 32, 8, 1)]),
    ("query", 4, 128): ([Blocks(16, 16, 8, 1)], [Blocks(16, 16, 8, 1)]),
    ("query", 4, 256): ([Blocks(16, 16, 8, 2)], [Blocks(16, 16, 8, 2)]),
    ("key", 4, 64): ([Blocks(32, 16, 4, 1)], [Blocks(32, 32, 4, 1)]),
    ("key", 4, 128): ([Blocks(16, 32, 8, 1)], [Blocks(32, 32, 8, 1)]),
    ("key", 4, 256): ([Blocks(16, 16, 4, 1)], [Blocks(16, 16, 4, 1)]),
}

# Where keys have offsets: a few registers more, which would spill.
WEIGHED_BLOCKS = BLOCKS | {
    ("key", 2, 64): ([Blocks(128, 64, 8, 2), Blocks(128, 64, 8, 1)], BLOCKS["key", 2, 64][1]),
    ("key", 2, 128): (BLOCKS["key", 2, 128][0], [Blocks(64, 64, 8, 1), Blocks(32, 32, 4, 1)]),
    ("key", 4, 256): ([Blocks(16, 16, 8, 1)], [Blocks(16, 16, 4, 1)]),
}


def blocks(kernel: str, itemsize: int, dim: int, capability: int, *, weighed: bool = False) -> list[Blocks]:
    """Configurations for a head dimension (the larger of keys' and values') and a compute capability, such as 90."""
    size = next(size for size in (64, 128, MAX_DIM) if dim <= size)
    return (WEIGHED_BLOCKS if weighed else BLOCKS)[kernel, itemsize, size][0 if capability == 90 else 1]


def padded(dim: int) -> int:
    """Power of two to which a head dimension is padded in a block, at least the depth of a tensor core's product."""
    return max(16, int(triton.next_power_of_2(dim)))


def constants(
    query: Tensor, value: Tensor, offset: Tensor | None, seeds: Tensor | None, formula: Formula
) -> dict[str, Any]:
    """Compile-time arguments of the kernels, without the block sizes."""
    dim, value_dim = query.shape[-1], value.shape[-1]
    return {
        "DIM": dim,
        "VALUE_DIM": value_dim,
        "BLOCK_DIM": padded(dim),
        "BLOCK_VALUE": padded(value_dim),
        "NORMALISED": formula.normalised,
        "RENORMALISE": formula.renormalise,
        "CAPPED": formula.softcap > 0,
        "SAMPLED": seeds is not None,
        "WEIGHED": offset is not None,
    }


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: EdgeMask,
    cutoff: Tensor,
    offset: Tensor | None,
    seeds: Tensor | None,
    formula: Formula,
) -> Forward:
    """Forward pass of `lit_sparse.attention.operator`, for masks without holes, dimensions up to 256, and 16 or 32 bit
    floats.

    Raises:
        ValueError: the inputs are of another kind.
    """
    _check(query, key, value, mask, formula)
    query, key, value = _rows(query), _rows(key), _rows(value)
    batch, heads, rows, _ = query.shape
    output = value.new_empty(batch, rows, heads, value.shape[-1])
    lse = query.new_empty(batch, heads, rows, dtype=torch.float32)
    counts = query.new_empty(batch, heads, 3, rows, dtype=torch.float32)
    mass = query.new_empty(batch, heads, rows if formula.renormalise else 0, dtype=torch.float32)
    tensors = [*_inputs(query, key, value, mask, cutoff, offset, seeds, formula), output, lse, mass, counts]
    _launch("forward", tensors, query, key, value, mask, offset, seeds, formula)
    edges = counts.sum(-1, dtype=torch.float64).float()  # float32 would miscount from 2^24 edges on
    return Forward(output, edges, lse, mass)


def backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: EdgeMask,
    cutoff: Tensor,
    offset: Tensor | None,
    seeds: Tensor | None,
    formula: Formula,
    output: Tensor,
    lse: Tensor,
    mass: Tensor,
    d_output: Tensor,
    d_expected: Tensor,
) -> Gradients:
    """Backward pass of `lit_sparse.attention.operator`. `output` and `d_output` are contiguous (B, T, H, Dv)."""
    _check(query, key, value, mask, formula)
    query, key, value = _rows(query), _rows(key), _rows(value)
    d_query, d_key, d_value = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    row_delta, row_sum = torch.empty_like(lse), torch.empty_like(lse)
    d_offset = None if offset is None else torch.empty_like(offset, memory_format=torch.contiguous_format)
    inputs = _inputs(query, key, value, mask, cutoff, offset, seeds, formula)
    tensors = [*inputs, output, lse, mass, d_output, d_expected, d_query, row_delta, row_sum]
    _launch("query", tensors, query, key, value, mask, offset, seeds, formula)
    tensors = [*inputs, lse, mass, d_output, d_expected, row_delta, row_sum, d_key, d_value, d_offset]
    _launch("key", tensors, query, key, value, mask, offset, seeds, formula)
    d_cutoff = row_sum.sum(dim=(0, 2)).neg_().to(cutoff.dtype)
    return Gradients(d_query, d_key, d_value, d_cutoff, d_offset)


def _check(query: Tensor, key: Tensor, value: Tensor, mask: EdgeMask, formula: Formula) -> None:
    if not formula.scaling > 0:
        raise ValueError(f"scaling must be positive, got {formula.scaling}")
    if mask.holes is not None:
        raise ValueError("the Triton kernels take masks of one run of keys for each query")
    if not query.dtype == key.dtype == value.dtype or query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        found = sorted({str(x.dtype) for x in (query, key, value)})
        raise ValueError(f"the Triton kernels take float32, bfloat16 or float16, all of one kind, got {found}")
    if (dim := max(query.shape[-1], value.shape[-1])) > MAX_DIM:
        raise ValueError(f"the Triton kernels take head dimensions up to {MAX_DIM}, got {dim}")


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _inputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: EdgeMask,
    cutoff: Tensor,
    offset: Tensor | None,
    seeds: Tensor | None,
    formula: Formula,
) -> list[Tensor | None]:
    interval = [x.to(torch.int32).contiguous() for x in (mask.start, mask.stop)]
    optional = [None if x is None else x.contiguous() for x in (offset, seeds)]
    return [query, key, value, *interval, cutoff.contiguous(), *optional, formula.sharpness.to(torch.float32)]


def _launch(
    name: str,
    tensors: list[Tensor | None],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: EdgeMask,
    offset: Tensor | None,
    seeds: Tensor | None,
    formula: Formula,
) -> None:
    batch, heads, rows, _ = query.shape
    kv_heads, keys = key.shape[1:3]
    strides = [stride for x in (query, key, value) for stride in x.stride()[:3]]
    mask_batch = rows if mask.start.shape[0] > 1 else 0
    sizes = [heads, heads // kv_heads, rows, keys]
    scalars = [formula.scaling, formula.softcap]

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        if name == "key":
            return triton.cdiv(keys, meta["BLOCK_KEYS"]), batch * kv_heads
        return triton.cdiv(rows, meta["BLOCK_ROWS"]), batch * heads

    arguments = [*tensors, *strides, mask_batch, *sizes, *scalars]
    # Fused multiply-add is asked for by name: Triton 3.10 changes the default.
    meta = {**constants(query, value, offset, seeds, formula), "enable_fp_fusion": True}
    if not query.is_cuda:  # interpreted: there is nothing to time
        choice = _config(_choices(name, query, meta)[0])
        KERNELS[name][grid](*arguments, **meta, **choice.all_kwargs())
        return
    with torch.cuda.device_of(query):
        _TUNED[name][grid](*arguments, **meta)


def _choices(name: str, query: Tensor, meta: dict[str, Any]) -> list[Blocks]:
    dim = max(meta["BLOCK_DIM"], meta["BLOCK_VALUE"])
    major, minor = torch.cuda.get_device_capability(query.device) if query.is_cuda else (0, 0)
    return blocks(name, query.element_size(), dim, 10 * major + minor, weighed=meta["WEIGHED"])


def _config(choice: Blocks) -> triton.Config:
    meta = {"BLOCK_ROWS": choice.rows, "BLOCK_KEYS": choice.keys}
    return triton.Config(meta, num_warps=choice.warps, num_stages=choice.stages)


def _tuned(name: str) -> Any:
    """The kernel with autotuning: its choices of blocks are timed once for each kind of problem."""

    def suited(configs: list[triton.Config], arguments: dict[str, Any], **meta: Any) -> list[triton.Config]:
        return [_config(choice) for choice in _choices(name, arguments["query"], meta)]

    entries = [*BLOCKS.items(), *WEIGHED_BLOCKS.items()]
    every = {choice for key, lists in entries if key[0] == name for choices in lists for choice in choices}
    return triton.autotune(
        [_config(choice) for choice in sorted(every)],
        key=["DIM", "VALUE_DIM", "NORMALISED", "RENORMALISE", "CAPPED", "SAMPLED", "WEIGHED"],
        prune_configs_by={"early_config_prune": suited},
    )(KERNELS[name])


_TUNED = {name: _tuned(name) for name in KERNELS}
