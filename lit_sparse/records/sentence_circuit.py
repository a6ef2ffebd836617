"""circuit.json: the circuit of one sentence, as the attention edges that keep a model's prediction.

An edge is (layer, head, query, key): in that head the position `query` attends to the position `key`. Positions count
the tokens from 0. `docs/concepts/circuits.md` explains how circuits are found, and the numbers.
"""

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, Field, NonNegativeInt, ValidationInfo, field_validator, model_validator

from lit_sparse.common.files import write_atomically
from lit_sparse.common.late import lent
from lit_sparse.records.reading import Finite, Text, read_json
from lit_sparse.records.shown import Shown

FORMAT: Literal[1] = 1
Off = Literal["mean", "zero", "corrupted"]


class KeptEdge(NamedTuple):
    """An edge of a circuit.

    weight: factor of the key's value in the query's output, in the whole model.
    effect: loss when this edge alone is removed from the circuit, as a loss of f or in nats of KL.
    """

    layer: NonNegativeInt
    head: NonNegativeInt
    query: NonNegativeInt
    key: NonNegativeInt
    weight: Finite
    effect: Finite


class Outcome(BaseModel):
    """Prediction of the next token in one forward pass.

    difference: log-odds of the answers against the wrong ones, in nats; None without wrong answers.
    kl: KL(whole model || this pass) of the next token, in nats.
    probability: probability of the answer, or without an answer of the whole model's likeliest token.
    predictions: the likeliest tokens with their probabilities.
    """

    difference: Finite | None
    kl: Finite
    probability: Finite
    predictions: list[tuple[Text, Finite]]


class Control(BaseModel):
    """Control: the same search for another answer with the same difference. `edges` is the number of edges that it
    takes; None if the difference was not reached."""

    answer: Text
    edges: int | None


class SentenceCircuit(Shown, BaseModel):
    """Circuit of one prompt in one model.

    ids, tokens: token ids of the prompt, and their texts.
    goal: "difference" if the circuit keeps the share `keep` of f; "distribution" if its KL stays at or below `nats`.
    off: what a switched-off edge passes: nothing ("zero"), what its head passes on average ("mean"), or what it passes
        on a corrupted prompt ("corrupted").
    mean_over: token ids of the prompts over which the heads' means were taken.
    corrupted, corrupted_ids: the corrupted prompt and its token ids.
    allowed, open: numbers of attention edges that causality allows, and of those that pass anything.
    whole, circuit, without, ablated: forward passes with all edges, with the circuit's only, with all but the
        circuit's, and with none.
    faithfulness: f of the circuit, (m_circuit - m_ablated) / (m_whole - m_ablated); None without wrong answers.
    left: f of the pass without the circuit's edges, which is the rest of the effect.
    controls: searches for arbitrary answers.
    agreement: share of edges that two circuits from other seeds have in common (Jaccard), averaged over pairs.
    """

    format: Literal[1] = FORMAT
    model: Text
    sparse: bool
    prompt: Text
    ids: list[int]
    tokens: list[Text]
    goal: Literal["difference", "distribution"]
    answer: Text
    answer_id: int
    wrong: Text | None
    keep: float | None
    nats: float | None
    off: Off
    mean_over: list[list[int]] = []
    corrupted: Text | None = None
    corrupted_ids: list[int] = []
    layers: int
    heads: int
    allowed: int
    open: int
    edges: list[KeptEdge]
    whole: Outcome
    circuit: Outcome
    without: Outcome
    ablated: Outcome
    faithfulness: Finite | None
    left: Finite | None
    controls: list[Control] = []
    agreement: float | None = None
    seconds: float

    @field_validator("edges")
    @classmethod
    def _edges_exist(cls, edges: list[KeptEdge], info: ValidationInfo) -> list[KeptEdge]:
        if not {"layers", "heads", "tokens"} <= info.data.keys():
            return edges  # one of these is refused by its own name
        layers, heads, size = info.data["layers"], info.data["heads"], len(info.data["tokens"])
        for edge in edges:
            if not (edge.layer < layers and edge.head < heads and edge.key <= edge.query < size):
                raise ValueError(f"no edge of {layers} layers, {heads} heads and {size} tokens: {list(edge[:4])}")
        return edges

    @model_validator(mode="after")
    def _goal_is_told(self) -> Self:
        needed = ("keep", "wrong", "faithfulness") if self.goal == "difference" else ("nats",)
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"the goal {self.goal!r} needs {', '.join(missing)}")
        if self.off == "corrupted" and (self.corrupted is None or len(self.corrupted_ids) != len(self.ids)):
            raise ValueError("off = 'corrupted' needs a corrupted prompt with the same number of tokens")
        return self

    def __repr__(self) -> str:
        edges = f"{len(self.edges):,} of {self.open:,} open edges, {'enough' if self.enough else 'not enough'}"
        return f"<SentenceCircuit: {self.prompt!r} → {self.answer!r} ({self.kind}); {edges}>"

    def apply(self, model: Any) -> AbstractContextManager[Any]:
        """Context in which only these edges are kept on the prompt; see
        `lit_sparse.circuits.attention_edges.apply.apply_circuit`."""
        context: AbstractContextManager[Any] = lent("apply_circuit")(self, model)
        return context

    @property
    def kind(self) -> str:
        return "sparse" if self.sparse else "dense"

    @property
    def enough(self) -> bool:
        """True if the circuit reaches its goal."""
        if self.goal == "difference":
            return (self.faithfulness or 0.0) >= (self.keep or 0.0)
        return self.circuit.kl <= (self.nats or 0.0)


class SentenceCircuits(Shown, BaseModel):
    """Content of circuit.json: the same prompt in one model or two, the requested model first."""

    circuits: Annotated[list[SentenceCircuit], Field(min_length=1, max_length=2)]

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.circuits))

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Self:
        """Reads a circuit.json.

        Raises:
            ValueError: the file is missing or not valid.
        """
        return read_json(Path(file), cls)

    def write(self, file: Path) -> None:
        """Writes the file, whole or not at all."""
        write_atomically(file, (json.dumps(self.model_dump(mode="json"), indent=1) + "\n").encode())


def by_strength(edges: Sequence[KeptEdge]) -> list[KeptEdge]:
    """Edges in the order of their effect, the largest first."""
    return sorted(edges, key=lambda edge: -edge.effect)
