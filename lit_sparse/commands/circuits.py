"""`python main.py circuits --model SPARSE`: what a sentence or a task needs of a model, and of its base.

--prompt TEXT, with --answer and --wrong or without: the attention edges that are enough for what comes next, a small
set that no edge can be taken from. Writes circuit.json, circuit.png and circuit.html.

--task ioi,induction: heads and component edges that a task needs. Says first how long that will take; --quick is for a
first look. Writes comparison.json and circuits.json (documented in docs/circuits.md), PNGs and circuits.html, and keeps
what each model, task and seed gave in --out/parts, so that the same command goes on after an interruption.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from lit_sparse.circuits.compare import comparison, together
from lit_sparse.circuits.settings import Settings
from lit_sparse.circuits.tasks import TASKS, Task, get_task
from lit_sparse.commands.circuit_parts import Part, Parts, measure_missing
from lit_sparse.commands.parser import CommandParser
from lit_sparse.commands.sentence import circuit_of_sentence
from lit_sparse.common.files import check_writable, write_atomically
from lit_sparse.models.compared import Candidate, find_candidates
from lit_sparse.records.circuits import (
    COMPARISON,
    CircuitsResult,
    ComparedModel,
    ComparedModels,
    Comparison,
    TaskResult,
)
from lit_sparse.records.run_summary import RunSummary
from lit_sparse.report.circuits.page import write_circuits_page
from lit_sparse.report.circuits.plots import render_circuits
from lit_sparse.report.circuits.table import circuits_table

NOTHING = "none"
PAGE, PARTS = "circuits.html", "parts"
QUICK: dict[str, Any] = {"prompts": 8, "seeds": 1, "method": "eap"}
"""What --quick sets."""


def circuits_command(args: Sequence[str]) -> None:
    """Measures both models on every task and seed, then compares.

    Raises:
        ValueError: an unknown task, method or model, or settings out of range: before anything is measured.
    """
    parser = _parser()
    parsed = parser.parse_args(list(args))
    if parsed.quick:  # only defaults: what is said explicitly holds
        parser.set_defaults(QUICK)
        parsed = parser.parse_args(list(args))
    if parsed.prompt is not None:
        if parsed.quick:
            raise ValueError("--quick belongs to tasks: leave it out with --prompt")
        _sentence(parsed)
        return
    for option in ("answer", "wrong", "corrupted"):
        if getattr(parsed, option) is not None:
            raise ValueError(f"--{option} belongs to a sentence: add --prompt TEXT")
    if parsed.against == NOTHING:
        raise ValueError(f"--against {NOTHING} belongs to a sentence: a task is measured in two models")
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
    models = [
        Parts(side, candidate, names, seeds, settings, out / PARTS)
        for side, candidate in (("base", base), ("sparse", sparse))
    ]
    measure_missing(models, console)
    found = {parts.side: parts.read() for parts in models}
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
    parser.add_argument(
        "--corrupted",
        type=str | None,
        default=None,
        help="a prompt of as many tokens: which edges make the difference? One that is off passes what it passes there",
    )
    parser.add_argument(
        "--off", type=Literal["mean", "zero"], default="mean", help="without --corrupted: what edges pass that are off"
    )
    parser.add_argument("--searches", type=int, default=1, help="of a sentence's circuit, the smallest is kept")
    parser.add_argument("--controls", type=int, default=1, help="with --wrong: searches for arbitrary answers")
    parser.add_argument("--task", type=str, default="ioi", help=f"separated by commas, or all: {', '.join(TASKS)}")
    parser.add_argument(
        "--method", type=Literal["eap", "eap-ig", "exact"], default="eap-ig", help="exact: only for small models"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a first look, short for {' '.join(f'--{name} {value}' for name, value in QUICK.items())}; "
        "those that are given beside it hold",
    )
    parser.add_argument("--ablation", type=Literal["patch", "mean"], default="patch", help="of what is left out")
    parser.add_argument("--prompts", type=int, default=32, help="pairs to find circuits on, and as many to measure on")
    parser.add_argument("--seeds", type=int, default=3, help="sets of prompts; intervals are over them")
    parser.add_argument("--interpolations", type=int, default=5, help="gradients that eap-ig averages")
    parser.add_argument("--batch_size", type=int, default=32, help="prompts at a time; memory grows with it")
    parser.add_argument("--out", type=str, default="runs/circuits", help="the folder to write to")
    return parser
