"""evaluation.json: what the tables show, unrounded.

    format          1
    complete        false while something asked for is not measured
    model, against  the names
    settings        tasks, limit, text, sequence_length, batch_size, dtype
    versions        of the libraries that the numbers depend on
    tasks           a list of TaskComparison
    text            a TextScore, with perplexity and base_perplexity, or null

A measured value is {value, stderr}; null is not measured, without meaning, or not finite.
"""

import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_sparse.common.files import write_atomically
from lit_sparse.downstream.scores import Estimate, TaskComparison, TaskScore, TextScore, compare_tasks, perplexity

FILE = "evaluation.json"
_FORMAT = 1


@dataclass
class EvaluationRecord:
    """Fills up while models are measured; `write` at every stage."""

    model: str
    against: str | None
    settings: Mapping[str, Any]
    of_model: Sequence[TaskScore] = field(default_factory=list)
    of_base: Sequence[TaskScore] | None = None
    text: TextScore | None = None

    @property
    def tasks(self) -> list[TaskComparison]:
        return compare_tasks(self.of_model, self.of_base)

    def write(self, file: Path, *, complete: bool) -> None:
        """Replaces the file as a whole."""
        libraries = ["torch", "transformers", *(["lm_eval"] if self.of_model else [])]
        content = {
            "format": _FORMAT,
            "complete": complete,
            "model": self.model,
            "against": self.against,
            "settings": dict(self.settings),
            "versions": {name: importlib.metadata.version(name) for name in libraries},
            "tasks": [_plain(row) for row in self.tasks],
            "text": None if self.text is None else _plain(self.text) | _perplexities(self.text),
        }
        write_atomically(file, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def _perplexities(text: TextScore) -> dict[str, Any]:
    base = perplexity(text.base_ce) if text.base_ce is not None else None
    return {"perplexity": _plain(perplexity(text.ce)), "base_perplexity": _plain(base)}


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate | TaskComparison | TextScore):
        return {name: _plain(item) for name, item in value._asdict().items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
