"""summary.json of attribution graphs: one prompt's numbers, or many prompts' with their mean and spread.

One prompt: a `GraphSummary`; with a second model beside it, that model's under `against`.
Many: a `PromptsSummary`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Self

from pydantic import BaseModel

from lit_sparse.records.reading import Finite, Text, checked, read_json

MEASURED = (
    "nodes", "links", "heads_for_80", "heads_for_80_by_influence", "heads_for_80_by_connection", "replacement_error",
    "explained_variance", "attention_edges", "seconds",
)  # fmt: skip


class GraphSummary(BaseModel):
    """One prompt's graph in numbers.

    nodes, links: after pruning.
    heads_for_80: the smallest number of heads that carry 80 % of the attention attribution;
    heads_for_80_by_influence: the same of the influence that head nodes have in the graph.
    heads_for_80_by_connection: heads that carry 80 % of what moves from one position to another, averaged over pairs of
    positions in proportion to their attribution.
    replacement_error: norm of the transcoders' errors over the norm of the MLPs' outputs.
    explained_variance: of the MLPs' outputs on this prompt.
    replacement_kl: KL (nats) of the next token from the model's with every MLP replaced by the transcoders.
    seconds: building the graph, loading excepted.
    model_digest: of the model's weights and gates (see `lit_sparse.models.digest`).
    attention_edges, allowed_attention_edges: open ones, and all that causality allows, over all heads.
    page: the explorer's HTML file, relative to the folder of summary.json.
    against: the same prompt in the model that it is compared with.
    """

    prompt: Text
    nodes: int
    links: int
    heads_for_80: int
    replacement_error: Finite
    seconds: Finite
    model: str | None = None
    model_digest: str | None = None
    sparse: bool | None = None
    answer: Text | None = None
    probability: Finite | None = None
    heads: int | None = None
    heads_for_80_by_influence: int | None = None
    heads_for_80_by_connection: Finite | None = None
    explained_variance: Finite | None = None
    replacement_kl: Finite | None = None
    attention_edges: int | None = None
    allowed_attention_edges: int | None = None
    page: str | None = None
    against: "GraphSummary | None" = None


class Spread(BaseModel):
    """A quantity over prompts: mean, standard deviation (0 for one prompt), least and largest value."""

    mean: Finite
    std: Finite
    min: Finite
    max: Finite

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Of at least one value."""
        spread = stdev(values) if len(values) > 1 else 0.0
        return cls(mean=fmean(values), std=spread, min=min(values), max=max(values))


class ModelSpread(BaseModel):
    """One model over all prompts; `measured` by the names of `MEASURED`."""

    model: str | None
    sparse: bool | None
    measured: dict[str, Spread]


class PromptsSummary(BaseModel):
    """Many prompts: the model that was asked about first, the one beside it second.

    fewer_heads: by prompt, heads_for_80 of the second model over that of the first; None without a second;
    fewer_heads_by_connection: the same of heads_for_80_by_connection.
    """

    prompts: list[GraphSummary]
    models: list[ModelSpread]
    fewer_heads: Spread | None = None
    fewer_heads_by_connection: Spread | None = None


def summarise(prompts: Sequence[GraphSummary]) -> PromptsSummary:
    """Mean and spread over at least one prompt, each with or each without a model beside it."""
    sides = [list(prompts)]
    beside = [one.against for one in prompts if one.against is not None]
    if len(beside) == len(prompts):
        sides.append(beside)
    return PromptsSummary(
        prompts=list(prompts),
        models=[_model(side) for side in sides],
        fewer_heads=_times(sides, "heads_for_80"),
        fewer_heads_by_connection=_times(sides, "heads_for_80_by_connection"),
    )


def read_summary(path: str | os.PathLike[str]) -> PromptsSummary:
    """A summary.json of one prompt or of many, as of many.

    Raises:
        ValueError: there is no such file, or it is not a summary of graphs.
    """
    path = Path(path)
    content = read_json(path, dict[str, Any])
    if "prompts" in content:
        return checked(content, PromptsSummary, path)
    return summarise([checked(content, GraphSummary, path)])


def _times(sides: Sequence[Sequence[GraphSummary]], name: str) -> Spread | None:
    """By prompt, the second model's number over the first's."""
    if len(sides) < 2:
        return None
    pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(*sides, strict=True)]
    times = [other / one for one, other in pairs if one and other is not None]
    return Spread.of(times) if times else None


def _model(side: Sequence[GraphSummary]) -> ModelSpread:
    values = {name: [x for one in side if (x := getattr(one, name)) is not None] for name in MEASURED}
    measured = {name: Spread.of(found) for name, found in values.items() if found}
    return ModelSpread(model=side[0].model, sparse=side[0].sparse, measured=measured)
