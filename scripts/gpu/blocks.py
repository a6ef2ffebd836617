"""Which block sizes of the attention kernels are fastest on this GPU: more of them than a launch tries.

    python scripts/gpu/blocks.py --out DIR [--seconds 40] [--compile]

Contribution gates, sampled, bfloat16, causal, T = 2,048: 9 heads of 64 sharing 3 keys and values, and 16 heads of 128.
A backward pass is timed whole, with one of its two kernels varied. `--compile` only fills Triton's cache, in as many
processes as there are cores. Writes DIR/blocks.json after each result.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

LENGTH = 2048
SHAPES = {64: (16, 9, 3), 128: (8, 16, 16)}  # by head dimension: batch, heads, key/value heads
SIZES = {  # rows and keys of a block
    "forward": [(64, 64), (64, 32), (128, 64), (128, 32), (64, 128)],
    "query": [(64, 32), (64, 64), (128, 32), (64, 16), (128, 16)],
    "key": [(64, 64), (128, 64), (32, 64), (64, 32), (64, 128), (32, 128)],
}


def candidates(kernel: str) -> list[tuple[int, int, int, int]]:
    """Rows, keys, warps and stages, where a thread has 8 to 32 edges: with more, its registers do not suffice."""
    found = []
    for (rows, keys), warps, stages in product(SIZES[kernel], (4, 8), (2, 3)):
        edges = rows * keys / (32 * warps)  # of a thread
        if 8 <= edges <= 32:
            found.append((rows, keys, warps, stages))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--share", type=int, nargs=2, help="of a compiling process: index, count")
    options = parser.parse_args()
    jobs = [(kernel, dim, choice) for dim in SHAPES for kernel in SIZES for choice in candidates(kernel)]
    if options.compile:
        count = os.cpu_count() or 1
        command = [sys.executable, __file__, "--out", str(options.out), "--share"]
        processes = [subprocess.Popen([*command, str(index), str(count)]) for index in range(count)]
        sys.exit(max(process.wait() for process in processes))
    if options.share:
        index, count = options.share
        for job in jobs[index::count]:
            attempt(*job, timed=False)
        return
    until = time.time() + options.seconds
    rows: list[dict[str, Any]] = []
    for kernel, dim, choice in jobs:
        if time.time() < until:
            rows.append({"kernel": kernel, "dim": dim, "blocks": choice, **attempt(kernel, dim, choice, timed=True)})
            (options.out / "blocks.json").write_text(json.dumps(rows) + "\n")
    for dim, kernel in product(SHAPES, SIZES):
        mine = [row for row in rows if (row["kernel"], row["dim"]) == (kernel, dim) and "ms" in row]
        best = sorted(mine, key=lambda row: row["ms"])[:4]
        print(kernel, dim, *(f"{row['blocks']} {row['ms']:.3f} ms ({row['spills']} spilled);" for row in best))


def attempt(kernel: str, dim: int, choice: tuple[int, int, int, int], *, timed: bool) -> dict[str, Any]:
    try:
        return run(kernel, dim, choice, timed=timed)
    except Exception as error:  # too much shared memory, say
        return {"error": f"{type(error).__name__}: {error}"[:300]}


class Fixed:
    """A kernel in place of its autotuner, with one configuration."""

    def __init__(self, kernel: Any, config: Any):
        self.kernel, self.config, self.compiled = kernel, config, None

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **meta: Any) -> None:
            self.compiled = self.kernel[grid](*arguments, **meta, **self.config.all_kwargs())

        return launch


PROBLEMS: dict[int, Any] = {}


def run(kernel: str, dim: int, choice: tuple[int, int, int, int], *, timed: bool) -> dict[str, Any]:
    import torch
    from triton.testing import do_bench

    from lit_sparse.attention.gpu import launch
    from lit_sparse.attention.interface import Formula
    from lit_sparse.attention.masks import EdgeMask

    if dim not in PROBLEMS:
        batch, heads, kv_heads = SHAPES[dim]
        generator = torch.Generator("cuda").manual_seed(0)

        def normal(count: int) -> torch.Tensor:
            drawn = torch.randn(batch, LENGTH, count, dim, generator=generator, device="cuda")
            return drawn.bfloat16().transpose(1, 2)

        query, key, value = normal(heads), normal(kv_heads), normal(kv_heads)
        cutoff = torch.full((heads,), -3.5, device="cuda")
        offset = 0.5 * value.float().square().sum(-1).log()
        seeds = torch.randint(2**62, (batch,), device="cuda")
        sharpness = torch.tensor(6.0, device="cuda")
        formula = Formula(sharpness, True, False, dim**-0.5, 0.0)
        inputs = (query, key, value, EdgeMask.causal(LENGTH, LENGTH, "cuda"), cutoff, offset, seeds, formula)
        result = launch.forward(*inputs)
        d_output = torch.randn_like(result.output)
        d_expected = torch.full((batch, heads), 1e-6, device="cuda")
        PROBLEMS[dim] = inputs, (result.output, result.lse, result.mass, d_output, d_expected)
        launch.backward(*inputs, *PROBLEMS[dim][1])  # the others' block sizes are chosen now
    inputs, rest = PROBLEMS[dim]
    tuned = launch._TUNED[kernel]
    fixed = launch._TUNED[kernel] = Fixed(launch.KERNELS[kernel], launch._config(launch.Blocks(*choice)))
    try:

        def call() -> None:
            launch.forward(*inputs) if kernel == "forward" else launch.backward(*inputs, *rest)

        call()
        torch.cuda.synchronize()
        found = {"registers": fixed.compiled.n_regs, "spills": fixed.compiled.n_spills}
        return found | ({"ms": do_bench(call, warmup=5, rep=30, return_mode="median")} if timed else {})
    finally:
        launch._TUNED[kernel] = tuned


if __name__ == "__main__":
    main()
