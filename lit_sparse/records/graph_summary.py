"""summary.json of attribution graphs: numbers of one prompt, or of many prompts with their mean and spread.

For one prompt it is a `GraphSummary`. If a second model was compared, its summary is under `against`.
For many prompts it is a `PromptsSummary`.
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
    """Numbers of one prompt's graph.

    nodes, links: numbers after pruning.
    heads_for_80: smallest number of heads with 80 % of the attention attribution.
    heads_for_80_by_influence: smallest number of heads with 80 % of the influence of head nodes in the graph.
    heads_for_80_by_connection: smallest number of heads with 80 % of the attribution between two positions, averaged
        over pairs of positions in proportion to their attribution.
    replacement_error: norm of the transcoders' errors over the norm of the MLPs' outputs.
    explained_variance: explained share of the variance of the MLPs' outputs on this prompt.
    replacement_kl: KL (nats) of the next token from the model's with every MLP replaced by the transcoders.
    seconds: time to build the graph, without loading.
    model_digest: digest of the model's weights and gates (see `lit_sparse.models.digest`).
    attention_edges, allowed_attention_edges: open edges, and all that causality allows, over all heads.
    page: the explorer's HTML file, relative to the folder of summary.json.
    against: summary of the same prompt in the model with which it is compared.
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
        """Spread of at least one value."""
        spread = stdev(values) if len(values) > 1 else 0.0
        return cls(mean=fmean(values), std=spread, min=min(values), max=max(values))


class ModelSpread(BaseModel):
    """Spreads of one model over all prompts. Keys of `measured` are the names of `MEASURED`."""

    model: str | None
    sparse: bool | None
    measured: dict[str, Spread]


class PromptsSummary(BaseModel):
    """Summary of many prompts. The model that was asked about comes first, the one compared with it second.

    fewer_heads: heads_for_80 of the second model over that of the first, by prompt; None without a second model.
    fewer_heads_by_connection: the same ratio of heads_for_80_by_connection.
    """

    prompts: list[GraphSummary]
    models: list[ModelSpread]
    fewer_heads: Spread | None = None
    fewer_heads_by_connection: Spread | None = None


def summarise(prompts: Sequence[GraphSummary]) -> PromptsSummary:
    """Mean and spread over at least one prompt. Either all or none of the prompts have a second model."""
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
    """Reads a summary.json. One prompt is returned as a summary of many.

    Raises:
        ValueError: there is no such file, or it is not a summary of graphs.
    """
    path = Path(path)
    content = read_json(path, dict[str, Any])
    if "prompts" in content:
        return checked(content, PromptsSummary, path)
    return summarise([checked(content, GraphSummary, path)])


def _times(sides: Sequence[Sequence[GraphSummary]], name: str) -> Spread | None:
    """Ratio of the second model's number to the first's, by prompt."""
    if len(sides) < 2:
        return None
    pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(*sides, strict=True)]
    times = [other / one for one, other in pairs if one and other is not None]
    return Spread.of(times) if times else None


def _model(side: Sequence[GraphSummary]) -> ModelSpread:
    values = {name: [x for one in side if (x := getattr(one, name)) is not None] for name in MEASURED}
    measured = {name: Spread.of(found) for name, found in values.items() if found}
    return ModelSpread(model=side[0].model, sparse=side[0].sparse, measured=measured)
