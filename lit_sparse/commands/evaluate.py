"""The command evaluate: benchmark tasks and text, in a model and its base with the same settings.

Writes evaluation.json into --out, anew after each model is finished.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import Namespace
from rich.console import Console
from transformers import PreTrainedModel

from lit_sparse.commands.options.evaluate import task_names
from lit_sparse.common.files import check_writable
from lit_sparse.common.progress import progress_bar
from lit_sparse.data.packing import PackedBlocks
from lit_sparse.downstream.harness import load_tasks, require_harness, run_tasks
from lit_sparse.downstream.record import EvaluationRecord
from lit_sparse.downstream.table import tasks_table, text_table
from lit_sparse.downstream.text import pack_text, score_text, text_files
from lit_sparse.models.compared import Candidate, find_candidates
from lit_sparse.records.evaluation import FILE

_SETTINGS = ("tasks", "limit", "text", "sequence_length", "batch_size", "dtype")


def evaluate_command(settings: Namespace) -> None:
    """Measures the model, then its base, then both on text; prints the tables.

    Raises:
        ValueError: nothing to measure, a model, task or text that cannot be had, or results that are there already:
            before anything is measured. Weights that cannot be loaded: when it is their turn.
    """
    names = task_names(settings.tasks)
    out = Path(settings.out) / FILE
    _check(settings, names, out)
    model, base = find_candidates(settings.model, settings.against)
    blocks = _blocks(settings, model, base) if settings.text else None
    console = Console()
    with console.status("reading tasks"):
        tasks = load_tasks(names) if names else None
    labels = ("sparse" if model.is_sparse else "model", "base" if base is not None else None)
    dtype: torch.dtype = getattr(torch, settings.dtype)
    record = EvaluationRecord(
        model=model.name,
        against=base.name if base is not None else None,
        settings={name: settings[name] for name in _SETTINGS},
    )

    def run(candidate: Candidate, label: str) -> PreTrainedModel:
        """Its task scores go to the record."""
        loaded = candidate.load(dtype)
        if names:
            console.print(f"{label}: {candidate.name}", highlight=False, markup=False)
            scores = run_tasks(loaded, candidate.tokenizer, tasks, limit=settings.limit, batch_size=settings.batch_size)
            if candidate is model:
                record.of_model = scores
            else:
                record.of_base = scores
            record.write(out, complete=blocks is None and (base is None or candidate is base))
        return loaded

    loaded: list[PreTrainedModel] = []
    for candidate, label in zip((model, base), labels, strict=True):
        if candidate is not None and label is not None:
            if blocks is None:
                loaded.clear()  # two large models at once only where both are needed
            loaded.append(run(candidate, label))
    if names:
        console.print(tasks_table(record.tasks, labels))
    if blocks is not None:
        with progress_bar("text") as advance:
            base_model = loaded[1] if base is not None else None
            record.text = score_text(loaded[0], base_model, blocks, batch_size=settings.batch_size, advance=advance)
        record.write(out, complete=True)
        console.print(text_table(record.text, labels))
    console.print(f"written to {out}", highlight=False, markup=False)


def _check(settings: Namespace, names: Sequence[str], out: Path) -> None:
    if names:
        require_harness()
    if out.exists() and settings.on_existing == "error":
        raise ValueError(f"{out} exists; choose another --out, or replace it with --on_existing overwrite")
    check_writable(out.parent)


def _blocks(settings: Namespace, model: Candidate, base: Candidate | None) -> PackedBlocks:
    if base is not None and model.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise ValueError(f"--text compares tokens, and {model.name} and {base.name} have different tokenizers")
    positions = min(model.positions, base.positions) if base is not None else model.positions
    return pack_text(text_files(settings.text), model.tokenizer, int(min(settings.sequence_length, positions)))
