"""Gate families at the same constraint and budget on the addition toy: edge fraction over steps, three seeds.

    python benchmarks/gate_families.py [--steps 600] [--seeds 3]

Writes results/gate_families.json and results/gate_families.png.
"""

import argparse
import json
import logging
import statistics

from machine import RESULTS, machine
from matplotlib.figure import Figure
from toy import train_toy

FAMILIES = {
    "logit (the paper)": ["--model.init_args.gate={class_path: lit_sparse.Logit, init_args: {bias: 2.0}}"],
    "probability, kappa 16": [
        "--model.init_args.gate={class_path: lit_sparse.Probability, init_args: {sharpness: 16}}"
    ],
}
DECAY = "--model.init_args.scheduler.init_args.total_iters"
COLOURS = dict(zip(FAMILIES, ("#d55e00", "#0072b2"), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

    runs = []
    for family, overrides in FAMILIES.items():
        for seed in range(options.seeds):
            rows = train_toy([*overrides, f"{DECAY}={options.steps}"], seed=seed, steps=options.steps)
            held_out = [row for row in rows if "val/edge_fraction" in row]
            feasible = [row for row in held_out if row["val/score"] <= 1]
            best = min(feasible, key=lambda row: row["val/score"]) if feasible else None
            runs.append({"family": family, "seed": seed, "best": best, "held_out": held_out})
            print(f"{family}, seed {seed}: sparsest that satisfies the constraint {best and best['val/edge_fraction']}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gate_families.json").write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")
    draw(runs)
    for family in FAMILIES:
        fractions = [run["best"]["val/edge_fraction"] for run in runs if run["family"] == family and run["best"]]
        if fractions:
            print(f"{family}: median {statistics.median(fractions):.2%} of edges, {len(fractions)} of {options.seeds}")


def draw(runs: list[dict]) -> None:
    """Edge fraction and KL on held-out sums, deterministic gates, one line a seed."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    edges, kl = figure.subplots(1, 2)
    for run in runs:
        steps = [row["step"] for row in run["held_out"]]
        label = run["family"] if run["seed"] == 0 else None
        colour = COLOURS[run["family"]]
        edges.plot(steps, [row["val/edge_fraction"] for row in run["held_out"]], color=colour, label=label, alpha=0.8)
        kl.plot(steps, [max(row["val/kl"], 1e-6) for row in run["held_out"]], color=colour, alpha=0.8)
    edges.set(xlabel="step", ylabel="open edges / allowed edges", yscale="log", title="Edges, held-out")
    kl.set(xlabel="step", ylabel="KL from the dense model [nats per digit]", yscale="log", title="KL, held-out")
    edges.legend()
    figure.savefig(RESULTS / "gate_families.png", dpi=150)


if __name__ == "__main__":
    main()
