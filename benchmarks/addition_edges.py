"""The algorithm that is left: every edge that a sparse addition model still opens, how often, and when.

    python benchmarks/addition_edges.py runs/addition/model

All 10,000 sums, deterministic gates. Prints the edges, and for those that open on some sums only, how often by the
sum of the tens and by whether the units carry, by itself and together with other heads' edges between the same
positions. Writes results/addition_edges.json and results/addition_edges.png.
"""

import argparse
import json
import logging
from pathlib import Path

import torch
from machine import RESULTS, machine
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from lit_sparse import from_pretrained
from lit_sparse.attention import open_edges
from lit_sparse.models.base import load_tokenizer

TEXTS = [f"{a:02d}+{b:02d}={a + b:03d}" for a in range(100) for b in range(100)]
TOKENS = ["a₁", "a₀", "+", "b₁", "b₀", "=", "s₂", "s₁", "s₀"]
TENS = torch.tensor([a // 10 + b // 10 for a in range(100) for b in range(100)])
ANSWER = slice(6, 9)
RARE = 0.005  # edges open on fewer sums are counted, not listed or drawn
CARRY = torch.tensor([a % 10 + b % 10 > 9 for a in range(100) for b in range(100)])
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model, tokenizer = from_pretrained(folder), load_tokenizer(str(folder))
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False) for text in TEXTS])
    right = (model(ids).logits.argmax(-1)[:, 5:8] == ids[:, ANSWER]).all(dim=1)

    opened: dict[tuple[int, int, int, int], torch.Tensor] = {}
    for layer, edges in enumerate(open_edges(model, ids)):
        for head, query, key in edges.indices[1:].unique(dim=1).T.tolist():
            where = edges.indices[1:].T.eq(torch.tensor([head, query, key])).all(dim=1)
            mask = torch.zeros(len(ids), dtype=torch.bool)
            mask[edges.indices[0, where]] = True
            opened[layer, head, query, key] = mask
    per_sum = sum(float(mask.float().mean()) for mask in opened.values())
    rows = [
        {"layer": layer, "head": head, "query": query, "key": key, "share": share}
        | {"share_by_tens": [float(mask[tens == TENS].float().mean()) for tens in range(19)]}
        | {"share_by_carry": [float(mask[carry == CARRY].float().mean()) for carry in (False, True)]}
        for (layer, head, query, key), mask in sorted(opened.items())
        if (share := float(mask.float().mean())) >= RARE
    ]
    pairs = []
    for query, key in sorted({(query, key) for _, _, query, key in opened}):
        heads = torch.stack([mask for where, mask in opened.items() if where[2:] == (query, key)])
        read = heads.any(dim=0)
        sums = {"without_carry": read & ~CARRY, "with_carry": read & CARRY}
        sums |= {"carry_and_tens_of_nine": read & CARRY & (TENS == 9), "several_heads": heads.sum(dim=0) > 1}
        reads = f"{TOKENS[query]} reads {TOKENS[key]}"
        pairs.append({"reads": reads} | {name: int(mask.sum()) for name, mask in sums.items()})
    found = {"exact": float(right.float().mean()), "edges_per_sum": per_sum, "ever_open": len(opened), "edges": rows}
    found |= {"pairs": pairs, "machine": machine()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "addition_edges.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"{found['exact']:.2%} of all sums exact, {per_sum:.2f} open edges a sum, {len(opened)} ever open")
    print(f"{'edge':<30}{'sums':>8}  without, with a carry;  by the sum of the tens digits, 0 to 18")
    for row in rows:
        name = f"layer {row['layer']} head {row['head']}: {TOKENS[row['query']]} reads {TOKENS[row['key']]}"
        by_tens = " ".join(f"{share:.0%}".rjust(4) for share in row["share_by_tens"])
        by_carry = " ".join(f"{share:.0%}".rjust(4) for share in row["share_by_carry"])
        print(f"{name:<30}{row['share']:>7.1%} {by_carry};  {by_tens}")
    print(
        f"{int((~CARRY).sum()):,} sums have units that do not carry, {int(CARRY.sum()):,} have units that do, "
        f"{int((CARRY & (TENS == 9)).sum()):,} of these with tens that add up to nine"
    )
    for pair in pairs:
        print(
            f"{pair['reads']} through any head: {pair['without_carry']:,} sums without a carry, {pair['with_carry']:,} "
            f"with one ({pair['carry_and_tens_of_nine']:,} with tens of nine); several heads: {pair['several_heads']:,}"
        )
    draw(rows).savefig(RESULTS / "addition_edges.png", dpi=150)


def draw(rows: list[dict]) -> Figure:
    """Positions from left to right, layers from bottom to top; an edge's width is the share of sums it is open on."""
    layers = sorted({row["layer"] for row in rows})
    heads = sorted({(row["layer"], row["head"]) for row in rows})
    figure = Figure(figsize=(8, 1.4 + 1.5 * len(layers)), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        level, colour = layers.index(row["layer"]), COLOURS[heads.index((row["layer"], row["head"])) % len(COLOURS)]
        ends = (row["key"], level), (row["query"], level + 1)
        axes.add_patch(
            FancyArrowPatch(
                *ends, arrowstyle="-|>", mutation_scale=11, shrinkA=11, shrinkB=11, color=colour,
                linewidth=0.6 + 3 * row["share"], alpha=0.35 + 0.65 * row["share"],
                connectionstyle=f"arc3,rad={0.05 + 0.015 * row['head']}",
            )
        )  # fmt: skip
    for level in range(len(layers) + 1):
        for position, token in enumerate(TOKENS):
            axes.text(
                position, level, token, ha="center", va="center", fontsize=12,
                bbox={"boxstyle": "circle", "facecolor": "white", "edgecolor": "#999999"},
            )  # fmt: skip
    for position, written in enumerate(TOKENS[ANSWER], start=ANSWER.start - 1):
        axes.text(position, len(layers) + 0.25, f"writes {written}", ha="center", fontsize=10)
    for index, (layer, head) in enumerate(heads):
        axes.plot([], [], color=COLOURS[index % len(COLOURS)], linewidth=3, label=f"layer {layer}, head {head}")
    axes.set(
        xlim=(-0.6, len(TOKENS) - 0.4), ylim=(-0.4, len(layers) + 0.4), xticks=[],
        yticks=range(len(layers) + 1), yticklabels=["embedding", *(f"after layer {layer}" for layer in layers)],
    )  # fmt: skip
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    main()
