"""Sentences that both models have and get right, compared protocol by protocol."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from attention_circuits.models import BASE, CONTROLS
from scipy.stats import bootstrap

from lit_sparse.circuits.attention_edges.sentence import agreement

Rows = dict[tuple[str, int, str], dict[str, Any]]

ALL = "all tasks"
SIDES = ("base", "sparse")
_BETTER = ("attribution", "averaged", "gradient", "exact")
"""Of these the better of zero and mean ablation is taken, sentence by sentence, as the paper does."""


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def table(results: Path) -> None:
    """Writes RESULTS.json, and prints it."""
    rows: dict[str, Rows] = {
        file.stem: {(row["task"], row["sentence"], row["protocol"]): row for row in read(file)}
        for file in sorted(results.glob("*.jsonl"))
    }
    base, control = BASE.replace(":", "_"), CONTROLS[0]
    sides = [(base, model) for model in rows if model != base]
    if control in rows:  # what training adds to cutoffs
        sides += [(control, model) for model in rows if model not in (base, *CONTROLS)]
    found = []
    for against, model in sides:
        other, mine = rows[against], rows[model]
        both = other.keys() & mine.keys()
        protocols = ["open", *dict.fromkeys(_reported(key[2]) for key in mine)]
        tasks = list(dict.fromkeys(key[0] for key in mine))
        for protocol in protocols:
            sizes = [_sizes(some, both, protocol) for some in (other, mine)]
            shared = sorted(sizes[0].keys() & sizes[1].keys())
            for task in [*tasks, ALL]:
                some = [key for key in shared if task in (key[0], ALL)]
                if some:
                    row = _compared(model, task, protocol, *([side[key] for key in some] for side in sizes))
                    found.append({"against": against, **row})
    plain = [
        {name: None if value != value else value for name, value in row.items()} for row in found
    ]  # NaN is not JSON
    results.with_suffix(".json").write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n")
    for row in found:
        print(
            f"{row['against']:18} {row['model']:20} {row['task']:22} {row['level']:4} "
            f"{row['protocol']:22} n {row['sentences']:3}  {row['base']:8.1f} {row['sparse']:8.1f}  "
            f"ratio {row['ratio']:6.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})  shared {row['shared']}"
        )


def jaccard(one: list[list[int]], other: list[list[int]]) -> float | None:
    """The share of two circuits' edges that is in both."""
    return agreement([{(*edge,) for edge in some} for some in (one, other)])


def _reported(protocol: str) -> str:
    what, _, over = protocol.partition("/")
    return what if what.split(" ")[1] in _BETTER else f"{what}/{over}"


def _sizes(rows: Rows, keys: set[tuple[str, int, str]], protocol: str) -> dict[tuple[str, int], dict[str, Any]]:
    """By task and sentence, `edges` and what else was measured."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    seen: dict[tuple[str, int], int] = {}
    for key in sorted(keys):
        row = rows[key]
        if row.get("wrong") or protocol not in ("open", _reported(key[2])):
            continue
        row = {"edges": row["open"]} if protocol == "open" else row
        first = rows.get((*key[:2], key[2].replace("another seed", "distribution")), {})
        if "another seed" in protocol and "kept" in first:
            row = {**row, "agreement": jaccard(row["kept"], first["kept"])}
        sentence = key[:2]
        seen[sentence] = seen.get(sentence, 0) + 1
        if row.get("edges") is not None and (sentence not in found or row["edges"] < found[sentence]["edges"]):
            found[sentence] = row
    needed = 2 if protocol.split(" ")[-1] in _BETTER else 1
    return {sentence: row for sentence, row in found.items() if seen[sentence] >= needed}


def _compared(
    model: str, task: str, protocol: str, base: list[dict[str, Any]], sparse: list[dict[str, Any]]
) -> dict[str, Any]:
    """A row: medians of both sides, the geometric mean of the sentences' ratios with a 95 % interval, and the share of
    edges that both models' circuits have (Jaccard)."""
    sizes = np.array([(one["edges"], other["edges"]) for one, other in zip(base, sparse, strict=True)], dtype=float)
    ratios = np.log(sizes.clip(1)[:, 0]) - np.log(sizes.clip(1)[:, 1])
    low = high = float("nan")
    if len(ratios) > 2 and np.ptp(ratios) > 0:
        interval = bootstrap((ratios,), np.mean, rng=np.random.default_rng(0)).confidence_interval
        low, high = float(np.exp(interval.low)), float(np.exp(interval.high))

    def medians(key: str) -> dict[str, float] | None:
        found = [[np.mean(row[key]) for row in side if key in row] for side in (base, sparse)]
        if not all(found):
            return None
        return {side: round(float(np.median(values)), 4) for side, values in zip(SIDES, found, strict=True)}

    shared = [
        jaccard(one["kept"], other["kept"])
        for one, other in zip(base, sparse, strict=True)
        if "kept" in one.keys() & other.keys()
    ]
    level, _, what = protocol.partition(" ") if " " in protocol else ("edge", "", protocol)
    return {
        "model": model, "task": task, "protocol": what, "level": level, "sentences": len(ratios),
        "base": float(np.median(sizes[:, 0])), "sparse": float(np.median(sizes[:, 1])),
        "ratio": float(np.exp(ratios.mean())), "ratio_low": low, "ratio_high": high,
        "first": medians("first"), "area": medians("area"),
        "necessity": medians("loss_without"), "transfer": medians("loss_elsewhere"),
        "ablated": medians("loss_ablated"), "zero": medians("loss_zero"), "rephrased": medians("loss_rephrased"),
        "agreement": medians("agreement"), "shared": round(float(np.median(shared)), 3) if shared else None,
        "seconds": medians("seconds"),
    }  # fmt: skip
