"""Trace of one prompt as plain data, from which its page, its plot and its table are made.

Edges here are open edges between two different positions that lie on a path to the position at which the answer is
read. The edges shown come first: a circuit that suffices for the answer, the most needed edge first. The others follow
by |contribution|, the strongest first. "Kept" edges are always the first few of this order. A closed edge passes what
its head passes on average over everyday sentences (`lit_sparse/tracing/flow.py`).

`trace.json` (written by `traces_json`) has format 2. In format 1 the edges shown were the strongest ones, and a closed
edge passed nothing:

    format        2
    prompt        the prompt as text
    tokens        its tokens as text, T of them
    answer        the token that is explained, as text
    answer_id     its id
    traces        a list with one entry per model, the requested model first:
      model           its name
      sparse          whether it has gates
      layers, heads   their numbers
      probability     probability of the answer
      predictions     the likeliest next tokens: [{token, probability}]
      allowed         number of edges that the mask allows, in all layers and heads
      open            number of open edges
      reachable       number of open edges between different positions on a path to the answer
      reaches         per token, true if it reaches the answer through open edges
      needed          per token, number of first edges that it needs to reach the answer; null: never
      cut             per token, change of the answer's log-probability (nats) when all edges out of it to later
                      positions are closed
      paths           per token, its first path to the answer: indices of edges in `edges`, from token to answer; null
                      if the token does not reach the answer or the path uses an edge that is not in `edges`
      ablations       [{edges, connected, tokens, probability}]: only the first `edges` are kept; `connected` of them
                      lie on a path, `tokens` tokens reach the answer, which has `probability` in that forward pass
      shown           number of first edges that are the circuit: kept alone, they leave the answer >= `keep` of its
                      probability, and less without any single one of them
      without         for each edge of the circuit, the answer's probability when this edge alone is removed
      keep            that share
      edges           the first edges (at least those shown), in columns: layer, head, query, key, weight (the factor
                      of the key's value), contribution (logits)
      total           sum of |contribution| over all reachable edges: shares are |contribution| / total
      seconds         time of the trace; the command does not count loading and the everyday average
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from lit_sparse.records.shown import Shown

FORMAT = 2
EDGES_WRITTEN = 5_000


@dataclass
class TraceEdges:
    """Edges in columns, in the order of the module's docstring."""

    layer: Int[np.ndarray, " edge"]
    head: Int[np.ndarray, " edge"]
    query: Int[np.ndarray, " edge"]
    key: Int[np.ndarray, " edge"]
    weight: Float[np.ndarray, " edge"]
    """The factor w of the key's value in the query's output."""
    contribution: Float[np.ndarray, " edge"]
    """Contribution to the answer's logit minus the mean logit."""

    def __getitem__(self, which: "slice | Bool[np.ndarray, ' edge'] | Int[np.ndarray, ' some']") -> "TraceEdges":
        return TraceEdges(**{name: column[which] for name, column in vars(self).items()})

    def __len__(self) -> int:
        return len(self.layer)


@dataclass(frozen=True)
class Ablation:
    """Ablation in which only the first `edges` edges are kept, and all others between different positions are closed.

    connected: number of them that lie on a path to the answer.
    tokens: number of input tokens that reach the answer along them.
    probability: probability of the answer.
    """

    edges: int
    connected: int
    tokens: int
    probability: float


@dataclass(repr=False)
class Trace(Shown):
    """Trace of one model's prediction. The module's docstring explains the fields."""

    model: str
    sparse: bool
    prompt: str
    tokens: list[str]
    answer: str
    answer_id: int
    layers: int
    heads: int
    probability: float
    predictions: list[tuple[str, float]]
    allowed: int
    open: int
    edges: TraceEdges
    reaches: list[bool]
    needed: list[int | None]
    cut: list[float]
    paths: list[list[int] | None]
    ablations: list[Ablation]
    keep: float
    shown: Ablation
    without: list[float]
    seconds: float

    @property
    def kind(self) -> str:
        """Name of the model beside another one: "sparse" or "dense"."""
        return "sparse" if self.sparse else "dense"

    @property
    def total(self) -> float:
        """Sum of all |contribution|."""
        return float(np.abs(self.edges.contribution).sum())

    def __repr__(self) -> str:
        kept = f"{self.shown.edges:,} of {self.open:,} open edges keep {self.shown.probability:.3f} of it"
        return f"<Trace: {self.prompt!r} → {self.answer!r} with p = {self.probability:.3f} ({self.kind}); {kept}>"

    def as_json(self, edges: int = EDGES_WRITTEN) -> dict[str, object]:
        """The trace's entry in trace.json, with at least the edges shown."""
        kept = min(len(self.edges), max(edges, self.shown.edges))
        columns = {name: column[:kept].tolist() for name, column in vars(self.edges).items()}
        columns["weight"] = [_short(x) for x in columns["weight"]]
        columns["contribution"] = [_short(x) for x in columns["contribution"]]
        return {
            "model": self.model,
            "sparse": self.sparse,
            "layers": self.layers,
            "heads": self.heads,
            "probability": self.probability,
            "predictions": [{"token": token, "probability": p} for token, p in self.predictions],
            "allowed": self.allowed,
            "open": self.open,
            "reachable": len(self.edges),
            "reaches": self.reaches,
            "needed": self.needed,
            "cut": [_short(x) for x in self.cut],
            "paths": [path if path is None or max(path, default=0) < kept else None for path in self.paths],
            "ablations": [vars(ablation) for ablation in self.ablations],
            "shown": self.shown.edges,
            "without": self.without,
            "keep": self.keep,
            "edges": columns,
            "total": self.total,
            "seconds": self.seconds,
        }


def traces_json(traces: Sequence[Trace]) -> str:
    """trace.json: one prompt in one or more models (schema above)."""
    first = traces[0]
    content = {
        "format": FORMAT,
        "prompt": first.prompt,
        "tokens": first.tokens,
        "answer": first.answer,
        "answer_id": first.answer_id,
        "traces": [trace.as_json() for trace in traces],
    }
    return json.dumps(content, allow_nan=False) + "\n"


def _short(value: float) -> float:
    """Value with five significant digits: enough for drawings, with a third of the characters."""
    return float(f"{value:.5g}") if math.isfinite(value) else 0.0
