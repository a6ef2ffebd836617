"""Part b of kernels.py: medians by device events, with as many tokens at every length, in bfloat16 under a causal mask.

Beside our operator with sampled gates: `scaled_dot_product_attention` (flash), FlexAttention compiled with a gate in
its score, and the formula in plain PyTorch. TFLOP/s count plain attention's useful work on the mask's edges, 4 D
operations an edge forward and 10 D backward, for all of them.
"""

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from lit_sparse.attention import Contribution, Probability, build_gate
from lit_sparse.attention.masks import EdgeMask
from lit_sparse.attention.operator import gated_attention

TOKENS, HEADS = 16_384, 16
PLAIN_UP_TO = 2048
# By importance: time may be short.
CASES = [
    *((kind, dim, length) for length in (2048, 512, 8192) for dim in (64, 128) for kind in ("flash", "contribution")),
    *(("probability", dim, length) for length in (2048, 512, 8192) for dim in (64, 128)),
    *(("plain", dim, length) for length in (512, 2048) for dim in (64, 128)),
    *(("flex", dim, 2048) for dim in (64, 128)),
    *(("flex", dim, length) for length in (512, 8192) for dim in (64, 128)),
]


def run(device: str, quick: bool, path: Path, until: float) -> None:
    rows: list[dict[str, Any]] = []
    cases = CASES[:4] if quick else CASES
    if device == "cpu":
        cases = [("flash", 16, 64), ("contribution", 16, 64), ("plain", 16, 64)]
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    for kind, dim, length in cases:
        row: dict[str, Any] = {"kind": kind, "dim": dim, "length": length}
        if time.time() > until:
            row["left_out"] = "no time"
        else:
            try:
                row |= measure(kind, dim, length, device)
            except Exception:
                row["error"] = traceback.format_exc()[-3000:]
        rows.append(row)
        compare_with_flash(rows)
        path.with_suffix(".tmp").write_text(json.dumps({"device": name, "rows": rows}, indent=1) + "\n")
        path.with_suffix(".tmp").replace(path)
    print(f"\n{name}, bfloat16, causal, {TOKENS} tokens, {HEADS} heads\n")
    print("| kind | D | T | forward ms | TFLOP/s | to flash | forward + backward ms | TFLOP/s | to flash | peak MB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        start = f"| {row['kind']} | {row['dim']} | {row['length']} |"
        if "forward" not in row:
            print(start, row.get("left_out") or row["error"].strip().splitlines()[-1][:90], "|")
            continue
        cells = [
            f"{row[which]:.3f} | {row[which + '_tflops']:.0f} | {row.get(which + '_to_flash', float('nan')):.2f} |"
            for which in ("forward", "both")
        ]
        print(start, *cells, f"{row['peak_mb']:.0f} |")
        if row.get("blocks"):
            print("    ", row["blocks"])


def compare_with_flash(rows: list[dict[str, Any]]) -> None:
    flash = {(row["dim"], row["length"]): row for row in rows if row["kind"] == "flash" and "both" in row}
    for row in rows:
        base = flash.get((row["dim"], row["length"]))
        if base is not None and "both" in row:
            row |= {f"{which}_to_flash": row[which] / base[which] for which in ("forward", "both")}


def measure(kind: str, dim: int, length: int, device: str) -> dict[str, Any]:
    """Milliseconds, and peak memory of a forward and backward pass beyond inputs."""
    began = time.time()
    on_gpu = device == "cuda"
    batch, heads = (TOKENS // length, HEADS) if on_gpu else (1, 2)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    generator = torch.Generator(device).manual_seed(0)

    def normal() -> Tensor:
        drawn = torch.randn(batch, length, heads, dim, generator=generator, device=device)
        return drawn.to(dtype).transpose(1, 2).requires_grad_()

    query, key, value = normal(), normal(), normal()
    forward, inputs = FORWARD[kind](query, key, value, generator)
    outputs = forward()
    cotangents = tuple(torch.randn_like(x) for x in outputs)

    def without_gradients() -> None:
        with torch.no_grad():
            forward()

    def both() -> None:
        torch.autograd.grad(forward(), inputs, cotangents)

    both()
    peak = 0.0
    if on_gpu:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        both()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    edges = batch * heads * length * (length + 1) / 2
    found: dict[str, Any] = {"batch": batch, "heads": heads, "peak_mb": peak}
    for which, call, work in (("forward", without_gradients, 4), ("both", both, 14)):
        found[which] = median(call, on_gpu)
        found[which + "_tflops"] = work * dim * edges / found[which] / 1e9
    if on_gpu and kind in ("contribution", "probability"):
        found["blocks"] = chosen()
    return {**found, "seconds": round(time.time() - began, 2)}


def median(call: Callable[[], None], on_gpu: bool) -> float:
    if on_gpu:
        from triton.testing import do_bench

        return float(do_bench(call, warmup=10, rep=60, return_mode="median"))
    times = []
    for _ in range(3):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return sorted(times)[1]


def chosen() -> dict[str, Any]:
    """What the autotuner took last, and registers and spilled bytes of everything compiled so far."""
    from lit_sparse.attention.gpu import launch

    found: dict[str, Any] = {}
    for name, tuned in launch._TUNED.items():
        found[name] = str(tuned.best_config)
        try:
            (cache, *_), *_ = tuned.fn.device_caches.values()
            found[name + " compiled"] = [
                [kernel.metadata.num_warps, kernel.metadata.shared, kernel.n_regs, kernel.n_spills]
                for kernel in cache.values()
            ]
        except Exception as error:  # Triton's own books, which differ between its versions
            found[name + " compiled"] = repr(error)
    return found


Forward = tuple[Callable[[], tuple[Tensor, ...]], tuple[Tensor, ...]]


def gated(family: type[Probability]) -> Callable[..., Forward]:
    def build(query: Tensor, key: Tensor, value: Tensor, generator: torch.Generator) -> Forward:
        batch, heads, length, dim = query.shape
        gate = build_gate(family(threshold=1 / length), heads).to(query.device)
        mask = EdgeMask.causal(length, length, query.device)
        seeds = torch.randint(2**63 - 1, (batch,), generator=generator, device=query.device)
        backend = "triton" if query.is_cuda else "blockwise"
        (cutoff,) = gate.parameters()

        def forward() -> tuple[Tensor, ...]:
            return tuple(
                gated_attention(query, key, value, mask, gate, scaling=dim**-0.5, seeds=seeds, backend=backend)
            )

        return forward, (query, key, value, cutoff)

    return build


def flash(query: Tensor, key: Tensor, value: Tensor, generator: torch.Generator) -> Forward:
    backend = SDPBackend.FLASH_ATTENTION if query.is_cuda else SDPBackend.MATH

    def forward() -> tuple[Tensor, ...]:
        with sdpa_kernel(backend):
            return (scaled_dot_product_attention(query, key, value, is_causal=True),)

    return forward, (query, key, value)


def flex(query: Tensor, key: Tensor, value: Tensor, generator: torch.Generator) -> Forward:
    """Its nearest: sampled gates that close an edge before the softmax, with a threshold on the logit and no gradient
    of the gate."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    length = query.shape[2]
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device=str(query.device))

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        word = ((i * 73856093) ^ (j * 19349663) ^ (h * 83492791)) & 0xFFFF
        return torch.where(torch.sigmoid(2 * s) > word.to(torch.float32) * 2.0**-16, s, -1e4)

    compiled: Any = torch.compile(flex_attention, dynamic=False)

    def forward() -> tuple[Tensor, ...]:
        return (compiled(query, key, value, score_mod=score, block_mask=mask),)

    return forward, (query, key, value)


def plain(query: Tensor, key: Tensor, value: Tensor, generator: torch.Generator) -> Forward:
    heads, length, dim = query.shape[1:]
    if length > PLAIN_UP_TO:
        raise ValueError("would need too much memory")
    form = build_gate(Probability(threshold=1 / length), heads).to(query.device).form()
    allowed = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()

    def forward() -> tuple[Tensor, ...]:
        logits = (query @ key.transpose(-1, -2)).float() * dim**-0.5
        log_p = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
        z = form.sharpness * (log_p.clamp_min(-1e4) - form.cutoff.view(-1, 1, 1))
        u = torch.rand_like(z).clamp_(1e-6, 1 - 1e-6)
        soft = torch.sigmoid(z - torch.logit(u))
        gates = (soft > 0.5).float() + soft - soft.detach()
        output = ((log_p.exp() * gates).to(value.dtype) @ value).transpose(1, 2)
        return output, (torch.sigmoid(z) * allowed).sum((-2, -1))

    return forward, (query, key, value, form.cutoff)


FORWARD: dict[str, Callable[..., Forward]] = {
    "contribution": gated(Contribution),
    "probability": gated(Probability),
    "flash": flash,
    "flex": flex,
    "plain": plain,
}
