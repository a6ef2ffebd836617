"""The command trace: the attention edges that lead to a prompt's next token.

With --out it also writes trace.png, trace.html and trace.json (documented in lit_sparse/records/trace.py), or,
for --prompts, traces.json: {"prompts": [{prompt, answer, models: [{model, sparse, ...numbers}]}],
"mean": [{model, sparse, ...numbers}]}, written anew after every prompt.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import Namespace
from rich.console import Console
from tqdm import tqdm
from transformers import PreTrainedModel

from lit_sparse.circuits.attention_edges.mask import DEFAULT
from lit_sparse.circuits.attention_edges.passes import Means
from lit_sparse.commands.options.shared import NOTHING
from lit_sparse.common.files import check_writable, write_atomically
from lit_sparse.models.compared import Candidate, find_candidates
from lit_sparse.records.trace import FORMAT, Trace, traces_json
from lit_sparse.report.shared import style
from lit_sparse.report.trace.page import write_trace_page
from lit_sparse.report.trace.plot import trace_figure
from lit_sparse.tracing.flow import everyday_average, trace
from lit_sparse.tracing.prompts import chosen_prompts, shared_tokens
from lit_sparse.tracing.terminal import means, prompts_table, row_of, trace_view

_Loaded = list[tuple[Candidate, PreTrainedModel, Means | None]]


def trace_command(parsed: Namespace) -> None:
    """Traces one prompt or many, in one model or two.

    Raises:
        ValueError: no such model, prompt or file, or an answer that is not one token: before any weights are loaded.
    """
    prompts = chosen_prompts(parsed.prompt, parsed.prompts)
    if parsed.out is not None:
        check_writable(parsed.out)
    console = Console()
    candidates, note = _candidates(parsed.model, parsed.against)
    for prompt in prompts:
        shared_tokens(prompt, parsed.answer, candidates)
    models, missing = _load(candidates, parsed.against is not None)
    for line in (note, missing):
        if line:
            console.print(line, style="yellow", highlight=False, markup=False)
    out = None if parsed.out is None else Path(parsed.out)
    if parsed.prompts is None:
        traces = _trace(models, parsed.prompt, parsed.answer, parsed.keep)
        console.print(trace_view(traces))
        if out is not None:
            _write(traces, out)
            console.print(f"page: {out / 'trace.html'}   picture: {out / 'trace.png'}", highlight=False, markup=False)
        return
    rows = []
    for index, prompt in enumerate(tqdm(prompts, desc="tracing", unit="prompt", leave=False)):
        rows.append(_trace(models, prompt, parsed.answer, parsed.keep))
        if out is None:
            continue
        content = {
            "format": FORMAT,
            "keep": parsed.keep,
            "prompts": [_numbers(row) for row in rows],
            "mean": _means(rows),
        }
        write_atomically(out / "traces.json", (json.dumps(content, indent=1) + "\n").encode())
        if parsed.pictures:
            _write(rows[-1], out / f"{index:03}")
    console.print(prompts_table(rows))


def _candidates(name: str, against: str | None) -> tuple[list[Candidate], str | None]:
    """The models, and a note on what had to be left out."""
    if against == NOTHING:
        return [find_candidates(name, name)[0]], None
    try:
        model, base = find_candidates(name, against)
    except ValueError as error:
        if against is not None:
            raise
        return [find_candidates(name, name)[0]], f"without a base model to compare with: {error}"
    return [model] if base is None else [model, base], None


def _load(candidates: Sequence[Candidate], required: bool) -> tuple[_Loaded, str | None]:
    """The models, and what their closed edges pass, which is the same for all prompts."""
    models: _Loaded = []
    for candidate in candidates:
        try:
            model = candidate.load(torch.float32)
        except ValueError as error:
            if required or not models:
                raise
            return models, f"without a base model to compare with: {error}"
        models.append((candidate, model, everyday_average(model, candidate.tokenizer)))
    return models, None


def _trace(models: _Loaded, prompt: str, answer: str | None, keep: float) -> list[Trace]:
    """In every model the same answer is explained: the given one, or what the first predicts."""
    traces: list[Trace] = []
    answer_id: int | None = None
    for candidate, model, average in models:
        kind = "sparse" if candidate.is_sparse else "dense"
        with tqdm(total=DEFAULT.steps, desc=f"{kind} model: finding the circuit", leave=False, unit="step") as bar:
            traces.append(
                trace(
                    model, candidate.tokenizer, prompt, answer,
                    answer_id=answer_id, keep=keep, name=candidate.name, average=average, advance=bar.update,
                )
            )  # fmt: skip
        answer_id = traces[0].answer_id
    return traces


def _write(traces: Sequence[Trace], out: Path) -> None:
    picture = style.png(trace_figure(traces))
    write_atomically(out / "trace.png", picture)
    write_atomically(out / "trace.json", traces_json(traces).encode())
    write_trace_page(traces, out / "trace.html", picture)


def _numbers(traces: Sequence[Trace]) -> dict[str, object]:
    models = [{"model": trace.model, "sparse": trace.sparse} | row_of(trace) for trace in traces]
    return {"prompt": traces[0].prompt, "answer": traces[0].answer, "models": models}


def _means(rows: Sequence[Sequence[Trace]]) -> list[dict[str, object]]:
    return [
        {"model": trace.model, "sparse": trace.sparse} | mean for trace, mean in zip(rows[0], means(rows), strict=True)
    ]
