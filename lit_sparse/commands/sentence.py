"""The command circuits with --prompt: the circuit of one sentence, in one model or two."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import Namespace
from rich.console import Console
from tqdm import tqdm

from lit_sparse.circuits.attention_edges.sentence import (
    SentenceSettings,
    encode_corrupted,
    encode_sentence,
    sentence_circuit,
)
from lit_sparse.circuits.tasks import Vocabulary
from lit_sparse.common.files import check_writable, write_atomically
from lit_sparse.common.progress import Bar
from lit_sparse.models.compared import Candidate
from lit_sparse.records.sentence_circuit import SentenceCircuit, SentenceCircuits
from lit_sparse.report.sentence.page import write_sentence_page
from lit_sparse.report.sentence.plot import circuit_figure
from lit_sparse.report.sentence.table import circuit_view
from lit_sparse.report.shared import style

NUMBERS, PICTURE, PAGE = "circuit.json", "circuit.png", "circuit.html"


def circuit_of_sentence(parsed: Namespace, candidates: Sequence[Candidate]) -> None:
    """Finds, prints and writes.

    Raises:
        ValueError: a prompt or answer that cannot be used: before any weights are loaded.
    """
    settings = SentenceSettings(
        keep=parsed.keep, nats=parsed.nats, off=parsed.off, searches=parsed.searches, controls=parsed.controls
    )
    check_writable(parsed.out)
    for candidate in candidates:
        vocabulary = Vocabulary(candidate.tokenizer)
        ids, _, _ = encode_sentence(vocabulary, parsed.prompt, parsed.answer, parsed.wrong)
        if parsed.corrupted is not None:
            encode_corrupted(vocabulary, parsed.prompt, parsed.corrupted)
        if len(ids) > candidate.positions:
            raise ValueError(
                f"the prompt has {len(ids)} tokens; {candidate.name} reads {candidate.positions:g} at most"
            )
    out, console = Path(parsed.out), Console()
    found: list[SentenceCircuit] = []
    for candidate in candidates:
        found.append(_found(candidate, parsed, settings, found[0].answer_id if found else None))
    circuits = SentenceCircuits(circuits=found)
    picture = style.png(circuit_figure(circuits))
    circuits.write(out / NUMBERS)
    write_atomically(out / PICTURE, picture)
    write_sentence_page(circuits, out / PAGE, picture)
    console.print(circuit_view(circuits))
    console.print(
        f"page: {out / PAGE}   picture: {out / PICTURE}   numbers: {out / NUMBERS}", highlight=False, markup=False
    )


def _found(
    candidate: Candidate, parsed: Namespace, settings: SentenceSettings, answer_id: int | None
) -> SentenceCircuit:
    """In every model the same answer is explained: the given one, or what the first predicts."""
    kind = "sparse" if candidate.is_sparse else "dense"

    def bars(description: str, total: int | None) -> Bar:
        return tqdm(total=total, desc=f"{kind} model: {description}", leave=False, unit="step")

    model = candidate.load(torch.float32)
    return sentence_circuit(
        model,
        candidate.tokenizer,
        parsed.prompt,
        parsed.answer,
        parsed.wrong,
        settings,
        corrupted=parsed.corrupted,
        answer_id=answer_id,
        name=candidate.name,
        bars=bars,
    )
