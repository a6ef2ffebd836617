"""Sparse models on text that none of them was trained on, by kind of text and by context length.

    python scripts/gpu/texts.py .gpu/texts                               texts of Debian's packages, some held out
    python benchmarks/lengths.py FOLDER [FOLDER ...] [--texts GLOB ...] [--lengths 256 1024 2048] [--tokens 8192]

Each model beside its base with the same settings: edges, open edges a query and head, KL and CE in nats a token, with
standard errors over blocks. A block is one stretch of a text, and blocks lie evenly over it, so every length sees the
same places. Rows go to results/lengths.json (a row of the same model, text and length is replaced); prints a table.
"""

import argparse
import glob
import json
import time
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, machine
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_sparse.attention import edge_counts
from lit_sparse.models.compared import find_candidates
from lit_sparse.objective import token_losses

FILE = RESULTS / "lengths.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--texts", nargs="+", default=[".gpu/texts/held_out/*.txt"], help="UTF-8 files, a kind each")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--tokens", type=int, default=8192, help="of a kind of text, for each length")
    options = parser.parse_args()
    found = [find_candidates(folder, None) for folder in options.folders]
    sparse = {candidate.name: candidate.load(torch.float32).eval() for candidate, _ in found}
    _, base_candidate = found[0]
    if base_candidate is None:
        raise SystemExit(f"{options.folders[0]} does not say what its base model is")
    base = base_candidate.load(torch.float32).eval()
    rows = json.loads(FILE.read_text()) if FILE.exists() else []
    for path in sorted(Path(name) for pattern in options.texts for name in glob.glob(pattern)):
        for length in options.lengths:
            blocks = evenly(path.read_text(encoding="utf-8"), base_candidate.tokenizer, length, options.tokens)
            for row in measured(sparse, base, blocks):
                row = {**row, "text": path.stem, "length": length, "machine": machine()}
                key = [row[name] for name in ("model", "text", "length")]
                rows = [old for old in rows if [old[name] for name in ("model", "text", "length")] != key] + [row]
                print(line(row), flush=True)
            FILE.write_text(json.dumps(rows, indent=1) + "\n")
    print("\n| text | T | model | edges | open edges a query | KL | CE - base |\n|---|---|---|---|---|---|---|")
    print(*(line(row) for row in sorted(rows, key=lambda row: (row["text"], row["length"], row["model"]))), sep="\n")


def evenly(text: str, tokenizer: PreTrainedTokenizerBase, length: int, tokens: int) -> Tensor:
    """Blocks (N, length + 1) of a text's tokens.

    Raises:
        ValueError: the text is shorter than that.
    """
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    count = max(1, tokens // length)
    if len(ids) < count * (length + 1):
        raise ValueError(f"the text has {len(ids)} tokens, and {count} blocks of {length} need more")
    starts = torch.linspace(0, len(ids) - length - 1, count).long()
    return torch.stack([ids[start : start + length + 1] for start in starts.tolist()])


@torch.no_grad()
def measured(sparse: dict[str, PreTrainedModel], base: PreTrainedModel, blocks: Tensor) -> list[dict[str, Any]]:
    """A row for each model."""
    by_model: dict[str, list[list[float]]] = {name: [] for name in sparse}
    seconds = dict.fromkeys(sparse, 0.0)
    for block in blocks:
        inputs, labels = {"input_ids": block[None, :-1], "use_cache": False}, block[None, 1:]
        base_logits = base(**inputs).logits
        for name, model in sparse.items():
            began = time.perf_counter()
            outputs = model(**inputs, output_attentions=True)
            seconds[name] += time.perf_counter() - began
            losses, edges = token_losses(outputs.logits, base_logits, labels), edge_counts(outputs.attentions)
            opened, allowed = float(edges.opened.sum()), float(edges.allowed.sum())
            difference = float((losses.ce - losses.base_ce).mean())
            queries = labels.numel() * edges.opened.numel()
            by_model[name].append([opened / allowed, opened / queries, float(losses.kl.mean()), difference])
    rows = []
    for name, values in by_model.items():
        table = torch.tensor(values, dtype=torch.float64)
        means = dict(
            zip(("edge_fraction", "edges_per_query", "kl", "ce_difference"), table.mean(0).tolist(), strict=True)
        )
        errors = table.std(0) / len(table) ** 0.5
        found = {"kl_error": float(errors[2]), "ce_difference_error": float(errors[3]), "blocks": len(table)}
        rows.append({"model": name, **means, **found, "tokens": blocks[:, 1:].numel(), "seconds": round(seconds[name])})
    return rows


def line(row: dict[str, Any]) -> str:
    return (
        f"| {row['text']} | {row['length']:,} | `{row['model']}` | {row['edge_fraction']:.2%} "
        f"| {row['edges_per_query']:.2f} | {row['kl']:.3f} ± {row['kl_error']:.3f} "
        f"| {row['ce_difference']:+.3f} ± {row['ce_difference_error']:.3f} |"
    )


if __name__ == "__main__":
    main()
