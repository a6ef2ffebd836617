"""One prompt's trace as plain data: what its page, its plot and its table are made from.

Edges here are open edges between two different positions, of those that lie on a walk back from the answer: what moves
something to the place where the answer is read. First come those shown, a circuit that is enough for the answer: the
one without which most is lost is the first. The others follow by |contribution|, the strongest first. "Kept" are always
the first few of this order. A closed edge passes what its head does on average over everyday sentences
(`lit_sparse/tracing/flow.py`).

`trace.json` (written by `traces_json`), format 2. In format 1 those shown were the strongest ones, and a closed edge
passed nothing:

    format        2
    prompt        the prompt as text
    tokens        its tokens as text, T of them
    answer        the token that is explained, as text
    answer_id     its id
    traces        a list, one a model, the first one asked for first:
      model           its name
      sparse          whether it has gates
      layers, heads   how many
      probability     of the answer
      predictions     the likeliest next tokens: [{token, probability}]
      allowed         edges that the mask allows, in all layers and heads
      open            edges that are open
      reachable       open edges between different positions on a walk back from the answer
      reaches         per token, whether it reaches the answer through open edges
      needed          per token, how many of the first edges have to be there until it reaches; null: never
      cut             per token, change of the answer's log-probability (nats) when all edges out of it to later
                      positions are closed
      paths           per token, its first path to the answer: places of edges in `edges`, from token to answer; null
                      where the token does not reach or the path uses an edge that was left out of `edges`
      ablations       [{edges, connected, tokens, probability}]: only the first `edges` kept, of which `connected`
                      lie on a walk back and `tokens` tokens reach, and the answer's probability in that forward pass
      shown           how many of the first edges are the circuit: kept alone, they leave the answer >= `keep` of its
                      probability, and less without any single one of them
      without         for each edge of the circuit, the answer's probability when it alone is taken out of it
      keep            that share
      edges           the first edges (at least those shown), in columns: layer, head, query, key, weight (the factor
                      of the key's value), contribution (logits)
      total           sum of |contribution| over all reachable edges: shares are |contribution| / total
      seconds         what the trace took; by the command, without loading and the everyday average
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
    """To the answer's logit less the mean logit."""

    def __getitem__(self, which: "slice | Bool[np.ndarray, ' edge'] | Int[np.ndarray, ' some']") -> "TraceEdges":
        return TraceEdges(**{name: column[which] for name, column in vars(self).items()})

    def __len__(self) -> int:
        return len(self.layer)


@dataclass(frozen=True)
class Ablation:
    """Only the first `edges` edges kept, all others between different positions closed.

    connected: how many of them lie on a walk back from the answer.
    tokens: how many input tokens reach the answer along them.
    probability: the answer's.
    """

    edges: int
    connected: int
    tokens: int
    probability: float


@dataclass(repr=False)
class Trace(Shown):
    """Why one model's next token came out as it did. Fields: see the module's docstring."""

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
        """What the model is called beside another one."""
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
    """Five significant digits: enough to draw with, a third of the characters."""
    return float(f"{value:.5g}") if math.isfinite(value) else 0.0
