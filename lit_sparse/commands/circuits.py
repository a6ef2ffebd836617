"""The command circuits: what the next token of a sentence, or a task, needs of a model and of its base.

A task's numbers go to comparison.json and circuits.json (docs/reference/files.md). What each model, task and seed gave
is kept in --out/parts, so that an interrupted command goes on there.
"""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from lit_sparse.circuits.compare import comparison, together
from lit_sparse.circuits.settings import Settings
from lit_sparse.circuits.tasks import TASKS, Task, get_task
from lit_sparse.commands.circuit_parts import Part, Parts, measure_missing
from lit_sparse.commands.options.shared import NOTHING
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

PAGE, PARTS = "circuits.html", "parts"


def circuits_command(parsed: Namespace) -> None:
    """Measures both models on every task and seed, then compares.

    Raises:
        ValueError: an unknown task, method or model, or settings out of range: before anything is measured.
    """
    if parsed.prompt is not None:
        _sentence(parsed)
        return
    names = list(TASKS) if parsed.task == "all" else [name.strip() for name in parsed.task.split(",") if name.strip()]
    tasks = [get_task(name) for name in names]
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
