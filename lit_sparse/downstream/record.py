"""Record of an evaluation so far, and its file evaluation.json."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_sparse.downstream.scores import TaskScore, compare_tasks, perplexity
from lit_sparse.records.evaluation import Evaluation, TaskComparison, TextComparison, TextScore


@dataclass
class EvaluationRecord:
    """Results of an evaluation, which are added while models are measured. `write` can be called at every stage."""

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
        """Replaces the file, whole or not at all."""
        libraries = ["torch", "transformers", *(["lm_eval"] if self.of_model else [])]
        Evaluation(
            complete=complete,
            model=self.model,
            against=self.against,
            settings=dict(self.settings),
            versions={name: importlib.metadata.version(name) for name in libraries},
            tasks=self.tasks,
            text=None if self.text is None else _with_perplexities(self.text),
        ).write(file)


def _with_perplexities(text: TextScore) -> TextComparison:
    base = None if text.base_ce is None else perplexity(text.base_ce)
    return TextComparison(**dict(text), perplexity=perplexity(text.ce), base_perplexity=base)
