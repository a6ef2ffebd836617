"""End of a run: evaluation of the best checkpoint on text that did not select it, export, plots and summary."""

import json
import shlex
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_sparse.attention import desparsify, reference_pattern, sparsify
from lit_sparse.common.files import write_atomically
from lit_sparse.models.adapters import has_adapters
from lit_sparse.models.sparse_folder import export_adapters, export_sparse
from lit_sparse.models.tokens import token_text
from lit_sparse.records.run import AttentionExample, RunRecord, read_history
from lit_sparse.records.run_summary import RunSummary
from lit_sparse.report.run.page import write_page
from lit_sparse.report.run.plots import render_plots
from lit_sparse.report.run.table import summary_table
from lit_sparse.training.checkpoint_io import BEST
from lit_sparse.training.held_out import Evaluation
from lit_sparse.training.history import merge_history
from lit_sparse.training.pair_module import PairModule

EXAMPLE = "When Mary and John went to the store, John gave a drink to Mary because she was thirsty."


def finish_run(module: PairModule, run_dir: Path, *, base_by_name: bool) -> RunSummary | None:
    """Writes summary.json, model/, plots/, report.html and the record from which they can be rebuilt; prints and
    returns the summary.

    All ranks measure. The first rank writes; the others return None. Files of an earlier end of the same run are
    replaced.

    Args:
        base_by_name: True if `load_model` gives the base by its name. Then the model/ of a run with adapters holds only
            the adapters and no copy of the base.
    """
    started = time.perf_counter()
    trainer, data = module.trainer, module.run_data
    if module.sharding.shards_weights:
        module.rebuild_whole(run_dir / "checkpoints")
    assert module.model is not None
    best = run_dir / "checkpoints" / BEST
    if best.is_file():
        checkpoint = torch.load(best, map_location="cpu", weights_only=True)
        module.load_weights(checkpoint)
        chosen_at = int(checkpoint["global_step"])
    else:
        chosen_at = trainer.global_step
    module.to(trainer.strategy.root_device)  # Lightning moves it to the CPU when training ends
    held_out = data.test()
    assert held_out is not None  # `check_finish`
    tokenizer = data.tokenizer(module.base_name)
    with trainer.precision_plugin.forward_context():
        end = module.evaluate(list(held_out), "evaluation on the test split")
        if not trainer.is_global_zero:
            return None
        example = attention_example(module)
    summary = summarise(module, end, chosen_at)

    summary.model_digest = _export(module.model, run_dir, summary, tokenizer, base_by_name)
    history_file = merge_history(run_dir)
    start = end if module.state.start is None else module.state.start
    record = RunRecord(
        summary=summary,
        history=read_history(history_file) if history_file else [],
        edges_start=start.open_fraction.numpy(),
        edges_end=end.open_fraction.numpy(),
        example=example,
    )
    record.save(run_dir / "record")
    plots = render_plots(record)
    for name, picture in plots.items():
        write_atomically(run_dir / "plots" / name, picture)
    write_page(record, run_dir / "report.html", plots)
    summary.report_seconds = round(time.perf_counter() - started, 1)
    write_atomically(run_dir / "summary.json", (json.dumps(summary.as_json(), indent=2) + "\n").encode())
    console = Console()
    console.print(summary_table(summary))
    for line in _where(module, run_dir):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return summary


def summarise(module: PairModule, end: Evaluation, chosen_at: int) -> RunSummary:
    """Summary of the run in numbers."""
    start, constraint = module.state.start, module.objective.constraint
    tolerance = constraint.tolerance_for(end.base_ce)
    summary = RunSummary(
        model=module.base_name,
        base_ce=end.base_ce,
        ce=end.ce,
        kl=end.kl,
        edges_per_query_start=start.edges_per_query if start is not None else None,
        edge_fraction_start=start.edge_fraction if start is not None else None,
        ce_start=start.ce if start is not None else None,
        kl_start=start.kl if start is not None else None,
        edges_per_query=end.edges_per_query,
        edge_fraction=end.edge_fraction,
        sequence_length=module.run_data.sequence_length,
        test_tokens=end.tokens,
        constraint=constraint.name,
        constraint_described=constraint.described(),
        constraint_value=end.constraint,
        tolerance=tolerance,
        tolerance_in_training=constraint.tolerance,
        satisfied=end.constraint <= tolerance,
        steps=module.trainer.global_step,
        chosen_step=chosen_at,
        tokens=module.state.tokens,
        seconds=module.state.seconds,
        gate=module.gate_config.family,
        centered=module.gate_config.centered,
        multiplier=float(module.objective.multiplier.value),
    )
    if end.exact_match == end.exact_match:  # NaN where sequences were not scored
        summary.exact_match = end.exact_match
    return summary


def attention_example(module: PairModule) -> AttentionExample:
    """Attention of one sentence in the base model and in the sparse one, in all layers and heads. For a task it is one
    held-out sequence."""
    data = module.run_data
    tokenizer, held_out = data.tokenizer(module.base_name), data.test()
    is_text = getattr(module.data, "task_name", "text") == "text"
    if tokenizer is not None and (is_text or held_out is None):
        positions = getattr(module.pair.teacher.config.get_text_config(), "max_position_embeddings", None)
        ids = tokenizer(EXAMPLE, return_tensors="pt").input_ids[:, :positions].to(module.device)
        title = "One sentence"
    else:
        assert held_out is not None
        ids = next(iter(held_out))["input_ids"][:1].to(module.device)
        title = "One held-out sequence"
    tokens = [str(token) if tokenizer is None else token_text(tokenizer, token) for token in ids[0].tolist()]
    assert module.model is not None
    after = reference_pattern(module.model, ids)
    teacher = module.pair.teacher
    sparsify(teacher, module.gate_config)
    before = reference_pattern(teacher, ids)
    desparsify(teacher)
    return AttentionExample(
        tokens=tokens,
        before=before.weights.numpy(),
        after=(after.weights * after.is_open).numpy(),
        title=title,
    )


def _export(
    model: PreTrainedModel,
    run_dir: Path,
    summary: RunSummary,
    tokenizer: PreTrainedTokenizerBase | None,
    base_by_name: bool,
) -> str:
    """Writes model/ and returns the model's digest. If no name gives the base, model/ holds it too, and the adapters
    to continue from are in adapters/."""
    folder, adapters = run_dir / "model", run_dir / "adapters"
    _remove(folder)
    _remove(adapters)
    if not has_adapters(model):
        return export_sparse(model, folder, measured=summary.as_json(), tokenizer=tokenizer)
    if base_by_name:
        return export_adapters(model, folder, measured=summary.as_json(), tokenizer=tokenizer)
    export_adapters(model, adapters, measured=summary.as_json(), tokenizer=tokenizer)
    return export_sparse(model, folder, measured=summary.as_json(), tokenizer=tokenizer)


def _where(module: PairModule, run_dir: Path) -> list[str]:
    """What was written, and what can be done with it."""
    lines = [f"report  {run_dir / 'report.html'} (open it in a browser)", f"model   {run_dir / 'model'}"]
    if getattr(module.data, "task_name", "text") == "text":
        program = "python main.py" if Path(sys.argv[0]).name == "main.py" else "lit-sparse"
        model = shlex.quote(str(run_dir / "model"))
        lines.append(f'next    {program} trace --model {model} --prompt "The capital of Germany is"')
    return lines


def _remove(folder: Path) -> None:
    """Removes an earlier export of this run."""
    if folder.is_dir():
        for file in sorted(folder.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
