"""Two models on the same tasks and prompts: how many heads and edges each needs for the same share of its behaviour."""

import math
from collections.abc import Sequence
from typing import Any

from scipy.stats import t as student_t


def comparison(tasks: Sequence[dict[str, Any]], shares: Sequence[float]) -> list[dict[str, Any]]:
    """Rows of `comparison.json`: for each task, level and share the geometric mean over seeds of both models' smallest
    circuits, their ratio (base / sparse), and its 95 % interval: Student's t on the logarithm of the seeds' ratios.

    Numbers are None where some seed's circuit never keeps the share, the interval also where there is one seed.
    """
    rows = []
    for task in tasks:
        if task["skipped"] is not None:
            continue
        base, sparse = task["base"], task["sparse"]
        for level in ("head", "edge"):
            for share in shares:
                counts = [[run[level]["smallest"][str(share)] for run in model["runs"]] for model in (base, sparse)]
                rows.append(
                    {"task": task["task"], "level": level, "fraction": share}
                    | _ratio(*counts)
                    | {"base_score": base["clean"], "sparse_score": sparse["clean"], "seeds": len(base["runs"])}
                )
    return rows


def _ratio(base: list[int | None], sparse: list[int | None]) -> dict[str, float | None]:
    known = [(b, s) for b, s in zip(base, sparse, strict=True) if b is not None and s is not None]
    empty: dict[str, float | None] = dict.fromkeys(("base", "sparse", "ratio", "ratio_low", "ratio_high"))
    if len(known) < len(base):
        return empty
    # A circuit of no heads at all counts as one, so that a ratio exists.
    logs = [(math.log(max(b, 1)), math.log(max(s, 1))) for b, s in known]
    ratios = [b - s for b, s in logs]
    count = len(ratios)
    mean = sum(ratios) / count
    result = empty | {
        "base": math.exp(sum(b for b, _ in logs) / count),
        "sparse": math.exp(sum(s for _, s in logs) / count),
        "ratio": math.exp(mean),
    }
    if count > 1:
        deviation = math.sqrt(sum((ratio - mean) ** 2 for ratio in ratios) / (count - 1))
        half = float(student_t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
        result |= {"ratio_low": math.exp(mean - half), "ratio_high": math.exp(mean + half)}
    return result


def summary(runs: Sequence[dict[str, Any]], shape: dict[str, int]) -> dict[str, Any]:
    """One model's results on a task, its seeds' together. Drawn circuit and example are the first seed's."""
    first = runs[0]
    shares = first["attention_edges"]
    return {
        "shape": shape,
        "accuracy": _mean([run["accuracy"] for run in runs]),
        "p_value": max(run["p_value"] for run in runs),
        "clean": _mean([run["clean"] for run in runs]),
        "ablated": _mean([run["ablated"] for run in runs]),
        "templates": {
            name: {
                "accuracy": _mean([run["templates"][name]["accuracy"] for run in runs]),
                "clean": _mean([run["templates"][name]["clean"] for run in runs]),
                "prompts": sum(run["templates"][name]["prompts"] for run in runs),
            }
            for name in first["templates"]
        },
        "runs": [{key: run[key] for key in ("seed", "head", "edge")} for run in runs],
        "attention_edges": {
            share: None
            if any(run["attention_edges"][share] is None for run in runs)
            else _mean([run["attention_edges"][share] for run in runs])
            for share in shares
        },
        "circuit": first["circuit"],
        "example": first["example"],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
