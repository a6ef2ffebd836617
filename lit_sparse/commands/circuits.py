"""`python main.py circuits --model SPARSE`: what a sentence or a task needs of a model, and of its base.

--prompt TEXT, with --answer and --wrong or without: the attention edges that are enough for what comes next, a small
set that no edge can be taken from. Writes circuit.json, circuit.png and circuit.html.

--task ioi,induction: heads and component edges that a task needs. Writes comparison.json and circuits.json (documented
in docs/circuits.md), PNGs and circuits.html, and keeps what each model, task and seed gave in --out/parts, so that the
same command goes on after an interruption.
"""

import hashlib
import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel
from rich.console import Console
from tqdm import tqdm

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.compare import comparison, together
from lit_sparse.circuits.faithfulness import NothingToExplain
from lit_sparse.circuits.measure import NotDone, Settings, measure
from lit_sparse.circuits.tasks import TASKS, NotExpressible, Task, get_task
from lit_sparse.commands.parser import CommandParser
from lit_sparse.commands.sentence import circuit_of_sentence
from lit_sparse.common.files import check_writable, write_atomically
from lit_sparse.common.progress import Bar
from lit_sparse.models.compared import Candidate, find_candidates
from lit_sparse.models.digest import digest_of
from lit_sparse.records.circuits import (
    COMPARISON,
    CircuitsResult,
    ComparedModel,
    ComparedModels,
    Comparison,
    TaskResult,
    TaskRun,
)
from lit_sparse.records.reading import read_json
from lit_sparse.records.run_summary import RunSummary
from lit_sparse.report.circuits.page import write_circuits_page
from lit_sparse.report.circuits.plots import render_circuits
from lit_sparse.report.circuits.table import circuits_table

NOTHING = "none"
PAGE, PARTS = "circuits.html", "parts"
_FORMAT = 3  # of the parts: those of another one are measured again


def circuits_command(args: Sequence[str]) -> None:
    """Measures both models on every task and seed, then compares.

    Raises:
        ValueError: an unknown task, method or model, or settings out of range: before anything is measured.
    """
    parsed = _parser().parse_args(list(args))
    if parsed.prompt is not None:
        _sentence(parsed)
        return
    for option in ("answer", "wrong"):
        if getattr(parsed, option) is not None:
            raise ValueError(f"--{option} belongs to a sentence: add --prompt TEXT")
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
    rows = [_result(task, found["base"][task.name], found["sparse"][task.name]) for task in tasks]
    result = CircuitsResult(
        models=ComparedModels(base=_named(base, found["base"]), sparse=_named(sparse, found["sparse"])),
        method=settings.method,
        ablation=settings.ablation,
        prompts=settings.prompts,
        seeds=list(seeds),
        shares=list(settings.shares),
        tasks=rows,
    )
    compared = Comparison(result, comparison(rows, settings.shares))
    compared.write(out)
    plots = render_circuits(compared)
    for name, picture in plots.items():
        write_atomically(out / name, picture)
    write_circuits_page(compared, out / PAGE, plots)
    console.print(circuits_table(compared))
    console.print(f"page: {out / PAGE}   numbers: {out / COMPARISON}", highlight=False, markup=False)


def _sentence(parsed: Namespace) -> None:
    if parsed.against == NOTHING:
        candidates = [find_candidates(parsed.model, parsed.model)[0]]
    else:
        model, base = find_candidates(parsed.model, parsed.against)
        candidates = [model] if base is None else [model, base]
    circuit_of_sentence(parsed, candidates)


class Part(BaseModel):
    """What is kept of one model, task and seed: the run, or why there is none."""

    model_digest: str
    run: TaskRun | None = None
    skipped: str | None = None


def _measure_model(
    candidate: Candidate,
    side: str,
    names: Sequence[str],
    seeds: range,
    settings: Settings,
    parts: Path,
    console: Console,
) -> dict[str, list[Part]]:
    """By task, the parts of all seeds."""
    wanted = [(name, seed) for name in names for seed in seeds]
    files = {key: parts / f"{side}-{key[0]}-{key[1]}-{_fingerprint(candidate, settings)}.json" for key in wanted}
    if any(not file.is_file() for file in files.values()):
        console.print(f"{side}: {candidate.name}", highlight=False, markup=False)
        model = candidate.load(torch.float32)
        digest = digest_of(model)
        with Stack(model) as stack:
            for (name, seed), file in files.items():
                if not file.is_file():
                    part = _measure(stack, candidate, name, seed, settings, digest)
                    write_atomically(file, part.model_dump_json().encode())
    return {name: [read_json(files[name, seed], Part) for seed in seeds] for name in names}


def _measure(stack: Stack, candidate: Candidate, name: str, seed: int, settings: Settings, digest: str) -> Part:
    def bars(description: str, total: int | None) -> Bar:
        return tqdm(total=total, desc=f"{name}, seed {seed}: {description}", leave=False, unit="run")

    try:
        run = measure(stack, candidate.tokenizer, get_task(name), seed, settings, bars)
    except (NotExpressible, NotDone, NothingToExplain) as error:
        return Part(model_digest=digest, skipped=str(error))
    return Part(model_digest=digest, run=run)


def _result(task: Task, base: Sequence[Part], sparse: Sequence[Part]) -> TaskResult:
    result = TaskResult(task=task.name, description=task.description)
    for side, parts in (("base", base), ("sparse", sparse)):
        for seed, part in enumerate(parts):
            if part.run is None:
                result.skipped = f"{side} model, seed {seed}: {part.skipped}"
                return result
    result.base, result.sparse = (together([part.run for part in parts if part.run]) for parts in (base, sparse))
    return result


def _named(candidate: Candidate, found: dict[str, list[Part]]) -> ComparedModel:
    measured = RunSummary.model_validate(candidate.measured)
    return ComparedModel(
        name=candidate.name,
        model_digest=next(iter(found.values()))[0].model_digest,
        edges_per_query=measured.edges_per_query,
        edge_fraction=measured.edge_fraction,
        sequence_length=measured.sequence_length,
    )


def _fingerprint(candidate: Candidate, settings: Settings) -> str:
    """Of everything that a part's numbers depend on, but for its file name."""
    text = json.dumps([_FORMAT, candidate.fingerprint(), asdict(settings)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _parser() -> CommandParser:
    parser = CommandParser(prog="main.py circuits", description=__doc__)
    parser.add_models(
        "a sparse model folder; with --prompt any model",
        f"default: the base that the export records; with --prompt also '{NOTHING}'",
    )
    parser.add_argument("--prompt", type=str | None, default=None, help="a sentence whose next token is explained")
    parser.add_argument("--answer", type=str | None, default=None, help="that token; default: what --model predicts")
    parser.add_argument(
        "--wrong", type=str | None, default=None, help="keep the answer's log-odds against this one; default: keep all"
    )
    parser.add_argument("--keep", type=float, default=0.9, help="share of these log-odds to keep")
    parser.add_argument("--nats", type=float, default=0.2, help="without --wrong: the largest KL of the next token")
    parser.add_argument("--off", type=Literal["mean", "zero"], default="mean", help="what edges pass that are off")
    parser.add_argument("--searches", type=int, default=1, help="of a sentence's circuit, the smallest is kept")
    parser.add_argument("--controls", type=int, default=1, help="with --wrong: searches for arbitrary answers")
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
