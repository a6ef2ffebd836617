"""`python main.py circuits --model SPARSE --task ioi,induction --out FOLDER`: task circuits of a model and its base.

Writes comparison.json and circuits.json (documented in docs/circuits.md), PNGs and circuits.html into --out, and keeps
what each model, task and seed gave in --out/parts, so that the same command goes on after an interruption.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from tqdm import tqdm

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.compare import comparison, summary
from lit_sparse.circuits.faithfulness import NothingToExplain
from lit_sparse.circuits.measure import SIGNIFICANT, Settings, measure
from lit_sparse.circuits.tasks import TASKS, NotExpressible, get_task
from lit_sparse.commands.parser import CommandParser
from lit_sparse.common.files import check_writable, write_atomically
from lit_sparse.models.compared import Candidate, find_candidates
from lit_sparse.models.digest import digest_of
from lit_sparse.report.circuits.page import write_circuits_page
from lit_sparse.report.circuits.plots import render_circuits
from lit_sparse.report.circuits.table import circuits_table

DETAILS, COMPARISON, PAGE, PARTS = "circuits.json", "comparison.json", "circuits.html", "parts"
_FORMAT = 2  # of the parts: those of another one are measured again


def circuits_command(args: Sequence[str]) -> None:
    """Measures both models on every task and seed, then compares.

    Raises:
        ValueError: an unknown task, method or model, or settings out of range: before anything is measured.
    """
    parsed = _parser().parse_args(list(args))
    names = list(TASKS) if parsed.task == "all" else [name.strip() for name in parsed.task.split(",") if name.strip()]
    tasks = [get_task(name) for name in names]
    if parsed.seeds < 1:
        raise ValueError(f"--seeds is the number of seeds, at least 1, not {parsed.seeds}")
    check_writable(parsed.out)
    settings = Settings(
        method=parsed.method,
        ablation=parsed.ablation,
        prompts=parsed.prompts,
        interpolations=parsed.interpolations,
        batch_size=parsed.batch_size,
    )
    sparse, base = find_candidates(parsed.model, parsed.against)
    if base is None:
        raise ValueError(f"{parsed.model} has no gates: name the model to compare it with, --against")
    out, seeds = Path(parsed.out), range(parsed.seeds)
    console = Console()
    found = {
        side: _measure_model(candidate, side, names, seeds, settings, out / PARTS, console)
        for side, candidate in (("base", base), ("sparse", sparse))
    }
    rows = [_row(task.name, task.description, found["base"], found["sparse"]) for task in tasks]
    details = {
        "models": {"base": _named(base, found["base"]), "sparse": _named(sparse, found["sparse"])},
        "method": settings.method,
        "ablation": settings.ablation,
        "prompts": settings.prompts,
        "seeds": list(seeds),
        "shares": list(settings.shares),
        "tasks": rows,
    }
    table = comparison(rows, settings.shares)
    write_atomically(out / COMPARISON, (json.dumps(table, indent=2) + "\n").encode())
    write_atomically(out / DETAILS, (json.dumps(details) + "\n").encode())
    plots = render_circuits(details, table)
    for name, picture in plots.items():
        write_atomically(out / name, picture)
    write_circuits_page(details, table, out / PAGE, plots)
    console.print(circuits_table(table, details))
    console.print(f"page: {out / PAGE}   numbers: {out / COMPARISON}", highlight=False, markup=False)


def _measure_model(
    candidate: Candidate,
    side: str,
    names: Sequence[str],
    seeds: range,
    settings: Settings,
    parts: Path,
    console: Console,
) -> dict[str, Any]:
    """By task, the runs of all seeds or the reason why there are none; and the model's shape."""
    wanted = [(name, seed) for name in names for seed in seeds]
    files = {key: parts / f"{side}-{key[0]}-{key[1]}-{_fingerprint(candidate, settings)}.json" for key in wanted}
    if any(not file.is_file() for file in files.values()):
        console.print(f"{side}: {candidate.name}", highlight=False, markup=False)
        model = candidate.load(torch.float32)
        digest = digest_of(model)
        with Stack(model) as stack:
            for (name, seed), file in files.items():
                if not file.is_file():
                    result = _measure(stack, candidate, name, seed, settings)
                    write_atomically(file, json.dumps(result | {"model_digest": digest}).encode())
    results = {key: json.loads(file.read_text(encoding="utf-8")) for key, file in files.items()}
    return {name: [results[name, seed] for seed in seeds] for name in names}


def _measure(stack: Stack, candidate: Candidate, name: str, seed: int, settings: Settings) -> dict[str, Any]:
    def bars(description: str, total: int | None) -> "tqdm[Any]":
        return tqdm(total=total, desc=f"{name}, seed {seed}: {description}", leave=False, unit="run")

    try:
        result = measure(stack, candidate.tokenizer, get_task(name), seed, settings, bars)
    except (NotExpressible, NothingToExplain) as error:
        return {"skipped": str(error)}
    if result["p_value"] > SIGNIFICANT:
        reason = f"accuracy {result['accuracy']:.0%} is no better than chance (p = {result['p_value']:.2g})"
        return {"skipped": reason}
    graph = stack.graph
    result["shape"] = {
        "layers": graph.layers,
        "heads_per_layer": max(graph.heads),
        "kv_heads_per_layer": max(graph.kv_heads),
    }
    return result | {"skipped": None}


def _row(name: str, description: str, base: dict[str, Any], sparse: dict[str, Any]) -> dict[str, Any]:
    reasons = [
        f"{side} model, seed {seed}: {run['skipped']}"
        for side, runs in (("base", base[name]), ("sparse", sparse[name]))
        for seed, run in enumerate(runs)
        if run["skipped"] is not None
    ]
    row: dict[str, Any] = {"task": name, "description": description, "skipped": None, "base": None, "sparse": None}
    if reasons:
        return row | {"skipped": reasons[0]}
    return row | {
        "base": summary(base[name], base[name][0]["shape"]),
        "sparse": summary(sparse[name], sparse[name][0]["shape"]),
    }


def _named(candidate: Candidate, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    measured = ("edges_per_query", "edge_fraction", "sequence_length")
    return {
        "name": candidate.name,
        "model_digest": next(iter(found.values()))[0]["model_digest"],
    } | {key: candidate.measured.get(key) for key in measured}


def _fingerprint(candidate: Candidate, settings: Settings) -> str:
    """Of everything that a part's numbers depend on, but for its file name."""
    text = json.dumps([_FORMAT, candidate.fingerprint(), asdict(settings)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _parser() -> CommandParser:
    parser = CommandParser(prog="main.py circuits", description=__doc__)
    parser.add_argument("--model", type=str, required=True, help="a sparse model folder")
    parser.add_argument("--against", type=str | None, default=None, help="default: the base that the export records")
    parser.add_argument("--task", type=str, default="ioi", help=f"separated by commas, or all: {', '.join(TASKS)}")
    parser.add_argument(
        "--method", type=Literal["eap", "eap-ig", "exact"], default="eap-ig", help="exact: only for small models"
    )
    parser.add_argument("--ablation", type=Literal["patch", "mean"], default="patch", help="of what is left out")
    parser.add_argument("--prompts", type=int, default=32, help="pairs to find circuits on, and as many to measure on")
    parser.add_argument("--seeds", type=int, default=3, help="sets of prompts; intervals are over them")
    parser.add_argument("--interpolations", type=int, default=5, help="gradients that eap-ig averages")
    parser.add_argument("--batch_size", type=int, default=32, help="prompts at a time; memory grows with it")
    parser.add_argument("--out", type=str, default="runs/circuits", help="the folder to write to")
    return parser
