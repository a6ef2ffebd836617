"""Section of a run's story on attribution graphs; `templates/story/graphs.html` lays it out."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lit_sparse.common.formatting import MISSING, count
from lit_sparse.records.graph_summary import GraphSummary, ModelSpread, PromptsSummary, Spread
from lit_sparse.records.run_parts import Graphs
from lit_sparse.report.circuits.values import times
from lit_sparse.report.run.story_sections import Cell, link

_MEASURED = (
    ("heads_for_80", "Heads for 80 % of the attention attribution", 1),
    ("heads_for_80_by_connection", "Heads for 80 % between two positions, mean over pairs", 1),
    ("heads_for_80_by_influence", "Heads for 80 % of the influence of all heads", 1),
    ("nodes", "Nodes", 0),
    ("links", "Links", 0),
    ("replacement_error", "Replacement error", 3),
    ("explained_variance", "Explained variance on the prompt", 3),
    ("seconds", "Time to compute, seconds", 1),
)


class Fewer(NamedTuple):
    """Ratio of the heads that two models need: the mean over prompts and its range, and the mean of
    heads between two positions where it is known."""

    models: list[str]
    mean: str
    least: str
    most: str
    by_connection: str | None


class PromptRow(NamedTuple):
    """A prompt, the address of its explorer if it is there, the answer, and heads for 80 % by model."""

    prompt: str
    href: str | None
    answer: str | None
    heads: list[str]


class GraphsPart(NamedTuple):
    """Heads for 80 % over prompts, and each prompt."""

    models: list[str]
    fewer: Fewer | None
    rows: list[tuple[str, list[Cell]]]
    prompts: list[PromptRow]

    @property
    def headings(self) -> list[str]:
        """Headings of the numbers beside each prompt."""
        return [f"Heads for 80 %, {model}" for model in self.models]

    @classmethod
    def of(cls, one: Graphs, out: Path) -> "GraphsPart":
        models = one.summary.models
        rows = [
            (label, [_spread(model.measured.get(key), digits) for model in models])
            for key, label, digits in _MEASURED
            if any(key in model.measured for model in models)
        ]
        prompts = [_prompt(one, prompt, out) for prompt in one.summary.prompts]
        return cls([kind(model) for model in models], _fewer(one.summary), rows, prompts)


def kind(model: ModelSpread) -> str:
    """Name of a model after "the": sparse model, dense model or model."""
    return {True: "sparse model", False: "dense model", None: "model"}[model.sparse]


def heads_words(summary: PromptsSummary) -> str:
    """Heads for 80 % by model: 5 against 41."""
    found = [model.measured["heads_for_80"].mean for model in summary.models if "heads_for_80" in model.measured]
    return " against ".join(f"{mean:.3g}" for mean in found) or MISSING


def _fewer(summary: PromptsSummary) -> Fewer | None:
    ratio, connection = summary.fewer_heads, summary.fewer_heads_by_connection
    if ratio is None:
        return None
    moved = None if connection is None else times(connection.mean)
    return Fewer(
        [kind(model) for model in summary.models], times(ratio.mean), times(ratio.min), times(ratio.max), moved
    )


def _prompt(one: Graphs, prompt: GraphSummary, out: Path) -> PromptRow:
    page = None if prompt.page is None else one.folder / prompt.page
    # Only pages of this folder: a summary from elsewhere shall not lead anywhere else.
    inside = page is not None and page.is_file() and page.resolve().is_relative_to(one.folder.resolve())
    sides: Sequence[GraphSummary | None] = [prompt, prompt.against][: len(one.summary.models)]
    heads = [MISSING if side is None else count(side.heads_for_80) for side in sides]
    return PromptRow(prompt.prompt, link(page, out) if page is not None and inside else None, prompt.answer, heads)


def _spread(found: Spread | None, digits: int) -> Cell:
    if found is None:
        return Cell(MISSING)
    return Cell(f"{found.mean:,.{digits}f}", f"± {found.std:,.{digits}f}")
