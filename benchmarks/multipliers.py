"""Trajectory of the Lagrange multiplier on the addition toy under each controller.

    python benchmarks/multipliers.py [--steps 600]

Writes results/multipliers.json and results/multipliers.png. `unclipped` is what the controllers are guarded against:
lambda multiplied by exp(rate * violation) with no clipping, no smoothing and no clamp.
"""

import argparse
import json
import logging
import math

from machine import RESULTS, machine
from matplotlib.figure import Figure
from torch import Tensor
from toy import train_toy

from lit_sparse.objective import Multiplier


class Unclipped(Multiplier):
    """The plain multiplicative update."""

    def __init__(self, initial: float = 1.0, rate: float = 0.05):
        super().__init__(initial, maximum=1e30)
        self.rate = rate

    def update(self, violation: Tensor) -> None:
        self.log_value = self._clamp(self.log_value + self.rate * violation)


OBJECTIVE = "lit_sparse.objective"
CONTROLLERS = {
    "geco": f"{OBJECTIVE}.Geco",
    "nu_pi": f"{OBJECTIVE}.NuPI",
    "unclipped": f"{__name__}.Unclipped" if __name__ != "__main__" else "multipliers.Unclipped",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

    runs = {}
    for name, path in CONTROLLERS.items():
        rows = train_toy([f"--model.init_args.objective.multiplier={path}"], seed=0, steps=options.steps, every=20)
        runs[name] = [row for row in rows if "train/lambda" in row]
        settled = [math.log10(row["train/lambda"]) for row in runs[name] if row["step"] > options.steps / 2]
        print(f"{name}: lambda spans {max(settled) - min(settled):.2f} decades in the second half")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "multipliers.json").write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    quantities = {"train/lambda": "lambda", "train/kl": "KL [nats per digit], sampled", "train/edge_fraction": "edges"}
    for panel, (metric, label) in zip(panels, quantities.items(), strict=True):
        for name, rows in runs.items():
            panel.plot([row["step"] for row in rows], [row[metric] for row in rows], label=name, linewidth=1)
        panel.set(xlabel="step", ylabel=label, yscale="log")
    panels[0].legend()
    figure.savefig(RESULTS / "multipliers.png", dpi=150)


if __name__ == "__main__":
    main()
