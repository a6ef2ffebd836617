"""Record of a found circuit: its edges, and the model's predictions with and without them."""

import time
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lit_sparse.circuits.attention_edges.goals import Difference, Distribution, Goal
from lit_sparse.circuits.attention_edges.passes import Passes
from lit_sparse.circuits.attention_edges.search import Found
from lit_sparse.circuits.tasks.vocabulary import Tokenizer
from lit_sparse.models.tokens import token_text
from lit_sparse.records.sentence_circuit import KeptEdge, Outcome, SentenceCircuit, by_strength

PREDICTIONS = 5


@torch.no_grad()
def describe(
    passes: Passes,
    found: Found,
    goal: Goal,
    tokenizer: Tokenizer,
    *,
    answer_id: int,
    wrong_id: int | None,
    started: float,
    **fields: Any,
) -> SentenceCircuit:
    """The record of one prompt's circuit.

    Args:
        started: `time.perf_counter()` when the work began.
        fields: other fields of the record.
    """
    kept = found.ablations.edges.switches(found.kept.float()[None])
    others = [edges.float()[None] - some for edges, some in zip(passes.open, kept, strict=True)]
    whole, ablated, circuit, without = passes.whole.logits, passes.ablated(), passes.logits(kept), passes.logits(others)

    def outcome(logits: Float[Tensor, "1 token"]) -> Outcome:
        probabilities = logits[0].softmax(-1)
        likeliest = probabilities.topk(min(PREDICTIONS, len(probabilities)))
        return Outcome(
            difference=float(goal.metric(logits)) if isinstance(goal, Difference) else None,
            kl=max(0.0, float(Distribution(whole).loss(logits))),
            probability=float(probabilities[answer_id]),
            predictions=[(token_text(tokenizer, int(i)), float(p)) for p, i in zip(*likeliest, strict=True)],
        )

    def share(logits: Float[Tensor, "1 token"]) -> float | None:
        return 1 - float(goal.loss(logits)) if isinstance(goal, Difference) else None

    return SentenceCircuit(
        ids=passes.ids[0].tolist(),
        tokens=[token_text(tokenizer, token) for token in passes.ids[0].tolist()],
        goal="difference" if isinstance(goal, Difference) else "distribution",
        answer=token_text(tokenizer, answer_id),
        answer_id=answer_id,
        wrong=None if wrong_id is None else token_text(tokenizer, wrong_id),
        off=passes.off,
        layers=passes.stack.graph.layers,
        heads=max(passes.stack.graph.heads),
        allowed=passes.allowed,
        open=sum(int(some.sum()) for some in passes.open),
        edges=_edges(passes, found, float(goal.loss(circuit))),
        whole=outcome(whole),
        circuit=outcome(circuit),
        without=outcome(without),
        ablated=outcome(ablated),
        faithfulness=share(circuit),
        left=share(without),
        seconds=time.perf_counter() - started,
        **fields,
    )


def _edges(passes: Passes, found: Found, loss: float) -> list[KeptEdge]:
    edges = found.ablations.edges
    (places,) = found.kept.nonzero(as_tuple=True)
    effects = found.ablations.switched(found.kept, places) - loss
    listed = []
    for place, effect in zip(places.tolist(), effects.tolist(), strict=True):
        layer, head, query, key = (int(column[place]) for column in (edges.layer, edges.head, edges.query, edges.key))
        weight = float(passes.whole.passed[layer].weights[0, head, query, key])
        listed.append(KeptEdge(layer, head, query, key, weight, effect))
    return by_strength(listed)
