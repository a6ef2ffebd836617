"""The GPU kernels without a GPU: registers, spills and shared memory of every default configuration, compiled ahead for
compute capabilities 8.0 and 9.0, and what an H100 could make of them.

    python benchmarks/gpu_kernels.py [--json benchmarks/results/gpu_kernels.json]

Instructions are those of the loops over interior tiles, in which every row sees every key: under a causal mask seven of
eight tiles of 128 queries and 64 keys at T = 2,048.

The second part is arithmetic on the compiled instructions, no measurement. An H100 SXM's multiprocessor does 4,096
tensor operations (bfloat16), 16 special functions and 128 instructions of a thread a clock; 132 of them at 1.83 GHz are
the data sheet's 989 TFLOP/s (NVIDIA H100 Tensor Core GPU Architecture; CUDA C Programming Guide, arithmetic
instructions). An edge of one head then takes, in clocks of a multiprocessor,

    matrix   products * 2 * head dimension / 4096
    special  exponentials and reciprocal roots / 16
    issue    instructions / 128

and its time lies between the largest of the three (perfect overlap) and their sum (none). The useful work is plain
attention's: 4 D operations forward, 10 D backward (FlashAttention-2, arXiv 2307.08691). That one's row has its counts:
2 products forward and 5 backward, 1 exponential each; its instructions are not counted.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lit_sparse.attention.gpu import ahead
from lit_sparse.attention.gpu.launch import KERNELS, blocks

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may have, CUDA C Programming Guide
BYTES = {"bf16": 2, "fp32": 4}
GATES = {  # what the kernels are compiled with: the families logit, probability and contribution
    "plain": {"normalised": False},
    "normalised": {"normalised": True},
    "weighed": {"normalised": True, "weighed": True},
}
TENSOR, SPECIAL, ISSUE = 4096, 16, 128  # a clock of a multiprocessor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    cases = [
        {"kernel": kernel, "capability": capability, "dim": dim, "dtype": dtype, "gate": gate}
        for dtype in BYTES
        for dim in (64, 128, 256)
        for kernel in KERNELS
        for capability in SHARED
        for gate in GATES
    ]
    uses = [use(case) for case in tqdm(cases, desc="compiling", unit="kernel")]
    print("| kernel | inputs | D | gate | sm | rows, keys, warps, stages | registers | spilled bytes | shared KB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in uses:
        print(
            f"| {row['kernel']} | {row['dtype']} | {row['dim']} | {row['gate']} | {row['capability']} "
            f"| {row['blocks']} | {row['registers']} | {row['spills']} | {row['shared'] / 1024:.0f} |"
        )
    estimates = [estimate(uses, dim, gate) for dim in (64, 128) for gate in GATES]
    estimates = [plain(64), plain(128), *(row for pair in estimates for row in pair)]
    print("\nArithmetic for an H100, bfloat16, sampled gates, an edge of one head; no measurement.\n")
    print("| D | pass | gate | products | special | instructions | clocks: matrix, special, issue | share of peak |")
    print("|---|---|---|---|---|---|---|---|")
    for row in estimates:
        clocks = ", ".join(f"{row[name]:.3f}" for name in ("matrix", "special", "issue"))
        shares = f"{row['share_without_overlap']:.0%} to {row['share_with_overlap']:.0%}"
        instructions = f"{row['instructions']:.0f}" if row["instructions"] else "not counted"
        print(
            f"| {row['dim']} | {row['pass']} | {row['gate']} | {row['products']} | {row['specials']:.1f} "
            f"| {instructions} | {clocks} | {shares} |"
        )
    if options.json:
        options.json.write_text(
            json.dumps({"rows": [*measured(uses), *counted(estimates), *estimated(estimates)]}, indent=1) + "\n"
        )


def use(case: dict[str, Any]) -> dict[str, Any]:
    """Resources of a default configuration with sampled gates, and instructions per edge of its interior tiles."""
    dim, dtype, gate = case["dim"], case["dtype"], GATES[case["gate"]]
    choice = blocks(case["kernel"], BYTES[dtype], dim, case["capability"], weighed=gate.get("weighed", False))[0]
    kernel = ahead.compile_ahead(case["kernel"], case["capability"], choice, dim=dim, dtype=dtype, **gate)
    edges = choice.rows * choice.keys / (32 * choice.warps)  # of a thread, in one turn of a loop
    loops = ahead.instructions(kernel)[::2]  # those over interior tiles, which are most of a long sequence's
    special = sum(name.startswith("MUFU") for loop in loops for name in loop) / edges
    total = sum(map(len, loops)) / edges
    resources = ahead.resources(kernel)._asdict()
    return {**case, "blocks": ", ".join(map(str, choice)), **resources, "special": special, "instructions": total}


def estimate(uses: list[dict[str, Any]], dim: int, gate: str) -> list[dict[str, Any]]:
    """The forward, and the backward of two kernels."""
    found = {
        row["kernel"]: row
        for row in uses
        if (row["capability"], row["dtype"], row["dim"], row["gate"]) == (90, "bf16", dim, gate)
    }
    both = [found["query"], found["key"]]
    normalised = GATES[gate]["normalised"]
    return [
        shares(dim, "forward", gate, 3 if normalised else 2, [found["forward"]]),
        shares(dim, "backward", gate, 8 if normalised else 7, both),
    ]


def shares(dim: int, which: str, gate: str, products: int, kernels: list[dict[str, Any]]) -> dict[str, Any]:
    specials = sum(row["special"] for row in kernels)
    instructions = sum(row["instructions"] for row in kernels)
    clocks = {
        "matrix": products * 2 * dim / TENSOR,
        "special": specials / SPECIAL,
        "issue": instructions / ISSUE,
    }
    ideal = {"forward": 4, "backward": 10, "both": 14}[which] * dim / TENSOR
    return {
        **{"dim": dim, "pass": which, "gate": gate, "products": products},
        **{"specials": specials, "instructions": instructions, **clocks},
        "share_without_overlap": ideal / sum(clocks.values()),
        "share_with_overlap": ideal / max(clocks.values()),
    }


def plain(dim: int) -> dict[str, Any]:
    """FlashAttention-2's counts, forward and backward together."""
    return shares(dim, "both", "none: FlashAttention-2", 7, [{"special": 2.0, "instructions": 0.0}])


def measured(uses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for row in uses:
        case = f"{row['kernel']} {row['dtype']} D={row['dim']} {row['gate']} sm_{row['capability']} ({row['blocks']})"
        limits = {"registers": 255, "spills": 0, "shared": SHARED[row["capability"]]}
        units = {"registers": "registers a thread", "spills": "bytes a thread", "shared": "bytes a block"}
        rows += [
            {"name": f"{name}, {case}", "value": row[name], "unit": units[name], "target": f"<= {limits[name]}"}
            for name in limits
        ]
    return rows


def counted(estimates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    totals: dict[tuple[int, str], float] = {}
    for row in estimates:
        if row["instructions"]:
            key = row["dim"], row["gate"]
            totals[key] = totals.get(key, 0.0) + row["instructions"]
    return [
        {
            "name": f"instructions, forward and backward, D={dim}, gate {gate}, bf16, sm_90",
            "value": round(total, 1),
            "unit": "a thread and edge of an interior tile",
            "target": {64: "<= 110", 128: "<= 130"}[dim] if gate == "normalised" else None,
        }
        for (dim, gate), total in totals.items()
    ]


def estimated(estimates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{name.replace('_', ' ')}, {row['pass']}, D={row['dim']}, gate {row['gate']}",
            "value": round(row[name], 3),
            "unit": "of 989 TFLOP/s, by arithmetic",
            "target": None,
        }
        for row in estimates
        for name in ("share_without_overlap", "share_with_overlap")
    ]


if __name__ == "__main__":
    main()
