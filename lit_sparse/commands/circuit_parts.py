"""Circuits of tasks, measured part by part: one model, one task, one seed. Parts are kept in files, so that a command
goes on where it stopped."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from pydantic import BaseModel
from rich.console import Console
from tqdm import tqdm

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.faithfulness import NothingToExplain
from lit_sparse.circuits.measure import Advance, NotDone, measure
from lit_sparse.circuits.prompts import group
from lit_sparse.circuits.settings import Settings
from lit_sparse.circuits.tasks import NotExpressible, Pair, get_task
from lit_sparse.circuits.work import estimated_seconds, time_passes
from lit_sparse.common.files import write_atomically
from lit_sparse.common.formatting import roughly
from lit_sparse.common.progress import Bar
from lit_sparse.models.compared import Candidate
from lit_sparse.models.digest import digest_of
from lit_sparse.records.circuits import TaskRun
from lit_sparse.records.reading import read_json

_FORMAT = 3  # of the files: those of another one are measured again


class Part(BaseModel):
    """Result of one model, task and seed: the run, or the reason why there is none."""

    model_digest: str
    run: TaskRun | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class Parts:
    """All parts of one model.

    Args:
        side: "base" or "sparse".
        folder: where their files are.
    """

    side: str
    candidate: Candidate
    names: Sequence[str]
    seeds: Sequence[int]
    settings: Settings
    folder: Path

    def read(self) -> dict[str, list[Part]]:
        """Results of all seeds, by task."""
        return {name: [read_json(self._files[name, seed], Part) for seed in self.seeds] for name in self.names}

    @cached_property
    def missing(self) -> list[tuple[str, int]]:
        """Tasks and seeds that had no file when this was first asked."""
        return [part for part, file in self._files.items() if not file.is_file()]

    @cached_property
    def pairs(self) -> dict[str, list[Pair]]:
        """Pairs of one seed for each task with missing parts; none where the tokenizer cannot express the task."""
        found: dict[str, list[Pair]] = {}
        for name, seed in self.missing:
            if name not in found:
                try:
                    found[name] = get_task(name).pairs(self.candidate.tokenizer, 2 * self.settings.prompts, seed)
                except NotExpressible:
                    found[name] = []
        return found

    def tokens(self, name: str) -> float:
        """Tokens of the prompts on which a task's circuits are found, half of all prompts."""
        return sum(len(pair.clean) for pair in self.pairs[name]) / 2

    def measure(self, stack: Stack, name: str, seed: int, digest: str, advance: Advance) -> None:
        """Measures one part and writes its file."""
        try:
            run = measure(stack, self.candidate.tokenizer, get_task(name), seed, self.settings, advance)
            part = Part(model_digest=digest, run=run)
        except (NotExpressible, NotDone, NothingToExplain) as error:
            part = Part(model_digest=digest, skipped=str(error))
        write_atomically(self._files[name, seed], part.model_dump_json().encode())

    @cached_property
    def _files(self) -> dict[tuple[str, int], Path]:
        fingerprint = self._fingerprint()
        return {
            (name, seed): self.folder / f"{self.side}-{name}-{seed}-{fingerprint}.json"
            for name in self.names
            for seed in self.seeds
        }

    def _fingerprint(self) -> str:
        """Hash of everything that determines a part's numbers, except its task and seed."""
        text = json.dumps([_FORMAT, self.candidate.fingerprint(), asdict(self.settings)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def measure_missing(models: Sequence[Parts], console: Console) -> None:
    """Measures what has no file yet, under one bar, and says before how long it will take."""
    models = [parts for parts in models if parts.missing]
    # A part's share of the bar is its prompts' length; those that are skipped take a moment too.
    total = sum(1 + parts.tokens(name) for parts in models for name, _ in parts.missing)
    told = False
    with tqdm(
        total=total,
        disable=not models,
        leave=False,
        dynamic_ncols=True,
        smoothing=0,
        miniters=0,
        bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left",
    ) as bar:
        done = 0.0
        for parts in models:
            bar.set_description(f"loading {parts.side}")
            model = parts.candidate.load(torch.float32)
            digest = digest_of(model)
            with Stack(model) as stack:
                if not told:
                    bar.set_description("timing a pass")
                    line = estimate(stack, models)
                    with tqdm.external_write_mode():
                        console.print(line, highlight=False, markup=False)
                    told = True
                for name, seed in parts.missing:
                    size = 1 + parts.tokens(name)
                    advance = _advance(bar, f"{parts.side}, {name}, seed {seed}", done, size)
                    parts.measure(stack, name, seed, digest, advance)
                    done += size
                    bar.update(done - bar.n)
            del stack, model  # before the next one is loaded


def _advance(bar: Bar, part: str, start: float, size: float) -> Advance:
    """Sets the bar to where a part is that begins at `start`."""

    def advance(what: str, share: float) -> None:
        bar.set_description(f"{part}: {what}", refresh=False)
        bar.update(start + share * size - bar.n)

    return advance


def estimate(stack: Stack, models: Sequence[Parts]) -> str:
    """Announcement of what will be measured and about how long it takes, from the time of a few passes."""
    first = models[0]
    lines = [f"{parts.side}: {parts.candidate.name}" for parts in models]
    pairs = next((some for some in first.pairs.values() if some), None)
    if pairs is not None:
        settings = first.settings
        batches = group(
            pairs[: settings.prompts], stack.vocabulary, size=settings.batch_size, device=stack.model.device
        )
        usual = sorted(batches, key=lambda batch: batch.clean.numel())[len(batches) // 2]
        each = time_passes(stack, usual)
        times = []
        for parts in models:
            tokens = sum(parts.tokens(name) for name, _ in parts.missing)
            times.append(f"{roughly(estimated_seconds(stack.graph, settings, tokens, each))} for {parts.side}")
        lines.append(f"about {', '.join(times)}")
    return "\n".join(lines)
