"""The command graph: the attribution graph of a prompt's next token, in a model and its base.

Writes graph.json (the schema of public graph viewers, lit_sparse/records/graph.py), graph.html, summary.json and
heads.json; for --prompts a folder of these for each prompt, and summary.json with mean and spread and heads.png over
all. What an interrupted command has written is not computed again.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jsonargparse import Namespace
from rich.console import Console
from tqdm import tqdm
from transformers import PreTrainedModel

from lit_sparse.attribution.prompt import (
    EXAMPLES_FILE,
    graph_and_heads,
    scan_of,
)
from lit_sparse.common.files import check_writable, write_atomically
from lit_sparse.models.compared import Candidate, find_candidates
from lit_sparse.models.digest import digest_of
from lit_sparse.records.feature_examples import Examples
from lit_sparse.records.graph import GraphFile
from lit_sparse.records.graph_summary import GraphSummary, PromptsSummary, summarise
from lit_sparse.report.graph.page import write_graph_page
from lit_sparse.report.graph.plot import heads_figure
from lit_sparse.report.graph.table import graphs_table
from lit_sparse.report.shared import style
from lit_sparse.tracing.prompts import chosen_prompts, shared_tokens
from lit_sparse.transcoders import Transcoder, check_model, load_transcoder

GRAPH, PAGE, SUMMARY, HEADS, PICTURE = "graph.json", "graph.html", "summary.json", "heads.json", "heads.png"


class Side(NamedTuple):
    """One of the models that are compared, with its transcoders."""

    candidate: Candidate
    folder: Path


class Loaded(NamedTuple):
    side: Side
    model: PreTrainedModel
    transcoder: Transcoder
    examples: Examples | None
    model_digest: str


class Settings(NamedTuple):
    answer: str | None
    node_share: float
    edge_share: float
    explained_heads: int


def graph_command(parsed: Namespace) -> None:
    """Graphs of one prompt or many, in one model or two.

    Raises:
        ValueError: no such model, transcoder, prompt or file, or transcoders of another model: before any weights are
            loaded as far as that can be told.
    """
    prompts = chosen_prompts(parsed.prompt, parsed.prompts)
    check_writable(parsed.out)
    settings = Settings(parsed.answer, parsed.node_share, parsed.edge_share, parsed.explained_heads)
    console, out = Console(), Path(parsed.out)
    sides = _sides(parsed)
    candidates = [side.candidate for side in sides]
    for prompt in prompts:
        shared_tokens(prompt, settings.answer, candidates)
    folders = [out] if parsed.prompts is None else [out / f"{index:03}" for index in range(len(prompts))]
    keys = [_fingerprint(sides, prompt, settings) for prompt in prompts]
    loaded: list[Loaded] = []
    summaries: list[GraphSummary] = []
    work = zip(prompts, folders, keys, strict=True)
    for prompt, folder, key in tqdm(list(work), desc="graphs", unit="prompt", leave=False, disable=len(prompts) == 1):
        found = _finished(folder, key)
        if found is None:
            loaded = loaded or [_load(side) for side in sides]
            found = _graphs(loaded, prompt, settings, folder, key)
        summaries.append(found)
    result = summarise(summaries)
    if parsed.prompts is not None:
        _write_all(result, summaries, folders, out)
    console.print(graphs_table(result))
    where = out / (PAGE if parsed.prompts is None else SUMMARY)
    console.print(f"{'page' if parsed.prompts is None else 'numbers'}: {where}", highlight=False, markup=False)


def _sides(parsed: Namespace) -> list[Side]:
    second = parsed.against_transcoders
    if second is None:
        candidates: list[Candidate] = [find_candidates(parsed.model, parsed.model)[0]]
    else:
        model, base = find_candidates(parsed.model, parsed.against)
        if base is None:
            raise ValueError(f"{parsed.model} has no base to compare with: name a model with --against")
        candidates = [model, base]
    sides = [
        Side(candidate, Path(folder))
        for candidate, folder in zip(candidates, (parsed.transcoders, second), strict=False)
    ]
    for side in sides:
        check_model(side.folder, side.candidate.name)
    return sides


def _load(side: Side) -> Loaded:
    transcoder = load_transcoder(side.folder)
    examples = side.folder / EXAMPLES_FILE
    found = Examples.load(examples) if examples.is_file() else None
    model = side.candidate.load(torch.float32)
    digest = digest_of(model)
    check_model(side.folder, side.candidate.name, digest)
    return Loaded(side, model, transcoder, found, digest)


def _graphs(loaded: Sequence[Loaded], prompt: str, settings: Settings, folder: Path, key: str) -> GraphSummary:
    """Builds and writes one prompt's graphs; the summary comes last, as the sign that all is there."""
    files, summaries, heads = [], [], []
    for one in loaded:
        file, shares = _graph(one, prompt, settings)
        files.append(file)
        assert file.metadata.summary is not None
        summaries.append(file.metadata.summary)
        heads.append(shares)
    files[0].write(folder / GRAPH)
    if len(files) == 2:
        files[1].write(folder / "against.json")
    write_graph_page(files, folder / PAGE, [one.examples for one in loaded])
    write_atomically(folder / HEADS, (json.dumps({"key": key, "models": heads}) + "\n").encode())
    whole = summaries[0].model_copy(update={"against": summaries[1] if len(summaries) == 2 else None, "page": PAGE})
    write_atomically(folder / SUMMARY, (whole.model_dump_json(indent=2) + "\n").encode())
    return whole


def _graph(one: Loaded, prompt: str, settings: Settings) -> tuple[GraphFile, list[float]]:
    return graph_and_heads(
        one.model,
        one.transcoder,
        one.side.candidate.tokenizer,
        prompt,
        settings.answer,
        node_share=settings.node_share,
        edge_share=settings.edge_share,
        explained_heads=settings.explained_heads,
        name=one.side.candidate.name,
        digest=one.model_digest,
        scan=scan_of(one.side.folder),
        examples=one.examples,
    )


def _write_all(result: PromptsSummary, summaries: Sequence[GraphSummary], folders: Sequence[Path], out: Path) -> None:
    prompts = [
        summary.model_copy(update={"page": f"{folder.name}/{PAGE}"})
        for summary, folder in zip(summaries, folders, strict=True)
    ]
    result = result.model_copy(update={"prompts": prompts})
    write_atomically(out / SUMMARY, (result.model_dump_json(indent=2) + "\n").encode())
    curves = [json.loads((folder / HEADS).read_text(encoding="utf-8"))["models"] for folder in folders]
    names = [f"{model.model}{' (sparse)' if model.sparse else ''}" for model in result.models]
    by_model = [[prompt[side] for prompt in curves] for side in range(len(names))]
    write_atomically(out / PICTURE, style.png(heads_figure(dict(zip(names, by_model, strict=True)))))


def _finished(folder: Path, key: str) -> GraphSummary | None:
    """Summary that an earlier call of the same command wrote for this prompt, if there is one."""
    if not (folder / SUMMARY).is_file() or not (folder / HEADS).is_file():
        return None
    if json.loads((folder / HEADS).read_text(encoding="utf-8")).get("key") != key:
        return None
    return GraphSummary.model_validate_json((folder / SUMMARY).read_bytes())


def _fingerprint(sides: Sequence[Side], prompt: str, settings: Settings) -> str:
    """Hash of everything that determines a prompt's graphs."""
    weights = [
        [
            (file.name, file.stat().st_size, file.stat().st_mtime_ns)
            for file in sorted(side.folder.glob("*.safetensors"))
        ]
        for side in sides
    ]
    names = [side.candidate.fingerprint() for side in sides]
    written = list(GraphSummary.model_fields)  # another version's summary may lack some
    return hashlib.sha256(json.dumps([names, weights, prompt, settings, written]).encode()).hexdigest()[:16]
