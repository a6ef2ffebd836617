"""Traces of a prediction: the few edges that suffice for it, the tokens that can reach it, each edge's contribution.

Attention weights are frozen throughout. Gates and softmax are functions of queries and keys, so an answer depends on a
model's values in two ways: through what the open edges move (o_i = sum_j w_ij v_j), and through what decides w. With
w fixed only the first way is left, and closing an edge changes no other edge's weight.

Edges from a position to itself move nothing between positions. Like the MLPs, they process what a position already
has. They are always kept and have no contribution.

A closed edge passes, at its weight, what its head passes on average over everyday sentences, as in circuits of
sentences (`circuits.attention_edges`). Only what is specific to its key is removed. In a dense model, whose weights sum
to one, heads then stay near what they usually write, so no edge is kept only to bring them there.

The edges shown are a minimal circuit. If only they are kept, the answer keeps at least the share `keep` of its
probability; without any single one of them it keeps less. A learnt mask and real ablation find the circuit. Other
circuits of this size may exist.

The contribution of an edge is the gradient of (answer's logit - mean logit) in the edge's switch. It is the mean over
three passes, in which all switches between positions are at 1/2, 3/4 and 1. By the chain rule it is
(w_ij (v_j - mean) W_O) . d/d(what the attention adds at query i). This is gradient x contribution with frozen patterns,
smoothed towards fewer edges as in Self-Attention Attribution (Hao et al., arXiv 2004.11207, who integrate from 0).
Norms and MLPs are differentiated. Contributions do not add up to the logit; shares are taken of the sum of
|contribution|. The mean logit is subtracted, as in circuit-tracer, because a shift of all logits changes nothing.

The cut of a token closes all edges whose key is its position (as in attention knockout, Geva et al., arXiv 2304.14767).
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from lit_sparse.anatomy.reach import reachable
from lit_sparse.anatomy.stack import Stack
from lit_sparse.attention import attention_modules
from lit_sparse.circuits.attention_edges.edges import EdgeList
from lit_sparse.circuits.attention_edges.everyday_text import everyday_prompts
from lit_sparse.circuits.attention_edges.goals import Goal, Probability
from lit_sparse.circuits.attention_edges.mask import DEFAULT, Learning
from lit_sparse.circuits.attention_edges.minimal import Ablations
from lit_sparse.circuits.attention_edges.passes import Means, Passes, means
from lit_sparse.circuits.attention_edges.search import find
from lit_sparse.circuits.tasks.vocabulary import NotExpressible, Tokenizer, Vocabulary
from lit_sparse.common.modes import frozen
from lit_sparse.models.names import shown_name
from lit_sparse.models.tokens import token_text
from lit_sparse.records.trace import Ablation, Trace, TraceEdges
from lit_sparse.tracing.paths import NEVER, connected, needed, shortest_path

SCALINGS = (1 / 2, 3 / 4, 1)
KEEP = 0.9
PREDICTIONS = 5
_WITHIN = 13
"""Number of sizes measured among the edges shown. Beyond them, sizes are a factor of sqrt 2 apart."""


def trace(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompt: str,
    answer: str | None = None,
    *,
    answer_id: int | None = None,
    keep: float = KEEP,
    name: str | None = None,
    average: Means | None = None,
    learning: Learning = DEFAULT,
    advance: Callable[[int], object] | None = None,
) -> Trace:
    """Traces the token after a prompt back through a dense or sparse model, which is left unchanged.

    Memory and time grow with layers x heads x T^2, so prompts should have at most a few hundred tokens.

    Args:
        tokenizer: a tokenizer of transformers, or a character tokenizer.
        answer: the token to explain, with its leading space if it has one; default the model's own prediction.
        answer_id: the same as a token's id.
        keep: share of the answer's probability that the shown edges have to keep.
        name: name of the model in the trace; default its own name, or that of its base.
        average: what closed edges pass, from `everyday_average`; None calls it.
        learning: settings for learning the mask that finds the shown edges.
        advance: called with 1 after each of `learning.steps` steps.

    Raises:
        ValueError: the prompt has fewer than two tokens, the answer is not one token after it, `keep` is out of range
            or finer than the model's numbers, or the model's family is not understood (see `Stack`).
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is a share of the answer's probability, in (0, 1], got {keep}")
    ids, from_text = encode(tokenizer, prompt, answer)
    answer_id = from_text if answer_id is None else answer_id
    sparse = bool(attention_modules(model))
    started = time.perf_counter()
    average = everyday_average(model, tokenizer) if average is None else average
    with frozen(model), Stack(model) as stack:
        passes = traced_passes(stack, torch.tensor([ids], device=model.device), average)
        probabilities = passes.whole.logits[0].softmax(-1)
        answer_id = int(probabilities.argmax()) if answer_id is None else answer_id
        likeliest = probabilities.topk(min(PREDICTIONS, len(probabilities)))
        weights = [layer.weights[0].float().cpu().numpy() for layer in passes.whole.passed]
        layers, size = len(weights), len(ids)
        seen = reachable(weights)
        goal = Probability(torch.tensor([answer_id], device=model.device), passes.whole.logits, keep)
        measured = Ablations(passes, EdgeList(passes.open), goal)
        chosen, without = circuit(passes, measured.edges, goal, learning, advance)
        scores = contributions(passes, measured.edges, answer_id)
        order = ordered(measured.edges, scores, seen, chosen)
        edges = _columns(passes, measured.edges, scores, order)
        full, shown = float(probabilities[answer_id]), len(chosen)
        ablations = _ablations(measured, order, edges, shown, full)
        cut = cuts(measured, size)
    places = needed(edges, layers, size)
    paths = [
        None if count == NEVER else shortest_path(edges[: int(count)], layers, size, token)
        for token, count in enumerate(places)
    ]
    return Trace(
        model=name or shown_name(model),
        sparse=sparse,
        prompt=prompt,
        tokens=[token_text(tokenizer, token) for token in ids],
        answer=token_text(tokenizer, answer_id),
        answer_id=answer_id,
        layers=layers,
        heads=max(len(weight) for weight in weights),
        probability=full,
        predictions=[(token_text(tokenizer, int(i)), float(p)) for p, i in zip(*likeliest, strict=True)],
        allowed=passes.allowed,
        open=sum(int(np.count_nonzero(weight)) for weight in weights),
        edges=edges,
        reaches=seen[0].tolist(),
        needed=[None if count == NEVER else int(count) for count in places],
        cut=cut.tolist(),
        paths=paths,
        ablations=ablations,
        keep=keep,
        shown=next(ablation for ablation in ablations if ablation.edges == shown),
        without=(full * without).tolist(),
        seconds=time.perf_counter() - started,
    )


def encode(tokenizer: Tokenizer, prompt: str, answer: str | None) -> tuple[list[int], int | None]:
    """Token ids of the prompt, and the token id of the answer if one is given.

    Raises:
        ValueError: see `trace`.
    """
    vocabulary = Vocabulary(tokenizer)
    ids = vocabulary.encode(prompt)
    if not ids:
        raise ValueError("the prompt is empty: there is nothing to trace")
    if len(ids) == 1:
        only = token_text(tokenizer, ids[0])
        raise ValueError(
            f"the prompt needs at least two tokens, for attention from one to another; {prompt!r} became one: {only!r}"
        )
    if answer is None:
        return list(ids), None
    try:
        return list(ids), vocabulary.continuation(prompt, answer)
    except NotExpressible as error:
        raise ValueError(f"answer: {error}; most words need their leading space, as in ' Paris'") from None


def everyday_average(model: PreTrainedModel, tokenizer: Tokenizer) -> Means | None:
    """Mean of what heads pass over everyday sentences. None if the tokenizer can express none of them; closed edges
    then pass their mean over the prompt itself."""
    sentences = everyday_prompts(tokenizer)
    if not sentences:
        return None
    with Stack(model) as stack:
        return means(stack, sentences)


def traced_passes(stack: Stack, ids: Int[Tensor, "1 time"], average: Means | None) -> Passes:
    """Passes of one prompt as a trace needs them (see the top of this file)."""
    average = means(stack, ids.tolist()) if average is None else average
    return Passes(stack, ids, "mean", means=average, frozen=True, between=True)


def contributions(
    passes: Passes, edges: EdgeList, answer: int, scalings: Sequence[float] = SCALINGS
) -> Float[Tensor, " edge"]:
    """Contribution of every edge (see the top of this file)."""
    scaling = torch.tensor(scalings, device=passes.ids.device)[:, None]
    switches = scaling.repeat(1, len(edges)).requires_grad_()
    with torch.enable_grad():
        logits = passes.logits(edges.switches(switches))
        margin = logits[:, answer] - logits.mean(-1)
        (gradients,) = torch.autograd.grad(margin.sum(), switches)
    return gradients.mean(0)


def circuit(
    passes: Passes,
    edges: EdgeList,
    goal: Goal,
    learning: Learning = DEFAULT,
    advance: Callable[[int], object] | None = None,
) -> tuple[Int[Tensor, " some"], Float[np.ndarray, " some"]]:
    """A minimal circuit: the indices of its edges, most needed first, and for each the answer's probability without it
    as a share of the whole model's.

    Raises:
        ValueError: see `trace`.
    """
    found = find(passes, goal, learning, advance=advance)
    if found is None:
        raise ValueError("keep is finer than the model's numbers: keep less, or load the model in float32")
    (places,) = found.kept.nonzero(as_tuple=True)
    losses, by_loss = found.ablations.switched(found.kept, places).sort(descending=True, stable=True)
    rank = torch.zeros(1, len(found.kept), device=places.device)  # 0: not in the circuit
    rank[0, places[by_loss]] = torch.arange(1.0, len(places) + 1, device=places.device)
    rank_of_all = edges.gathered([layer[0] for layer in found.ablations.edges.switches(rank)])
    (here,) = rank_of_all.nonzero(as_tuple=True)
    return here[rank_of_all[here].argsort()], _factors(losses)


def ordered(
    edges: EdgeList,
    scores: Float[Tensor, " edge"],
    seen: Bool[np.ndarray, "layer_and_answer position"],
    first: Int[Tensor, " chosen"],
) -> Int[Tensor, " some"]:
    """Indices of the edges that can reach the answer (`seen` comes from `reachable`): those of a circuit first, in
    their order, then the others by |contribution|."""
    passed = torch.from_numpy(seen).to(scores.device)[edges.layer + 1, edges.query]
    passed[first] = False
    (others,) = passed.nonzero(as_tuple=True)
    return torch.cat([first, others[scores[others].abs().argsort(descending=True, stable=True)]])


@torch.no_grad()
def kept_first(measured: Ablations, order: Int[Tensor, " some"], counts: Sequence[int]) -> Float[np.ndarray, " count"]:
    """Share of the answer's probability that is left in real forward passes, in which only the first few edges of an
    order are kept among all edges between positions."""
    rank = torch.full((len(measured.edges),), len(order), device=order.device)
    rank[order] = torch.arange(len(order), device=order.device)
    return _factors(measured.losses(rank < torch.tensor(counts, device=order.device)[:, None]))


@torch.no_grad()
def cuts(measured: Ablations, positions: int) -> Float[np.ndarray, " position"]:
    """Change of the answer's log-probability when all edges out of one position are closed, for every position."""
    position = torch.arange(positions, device=measured.edges.key.device)
    return -measured.losses(measured.edges.key != position[:, None]).double().cpu().numpy()


def _ablations(
    measured: Ablations, order: Int[Tensor, " some"], edges: TraceEdges, shown: int, probability: float
) -> list[Ablation]:
    """Forward passes with ever more edges: closely spaced up to those shown, then by factors of sqrt 2."""
    layers = measured.passes.stack.graph.layers
    factors = [2 ** (-step / 2) for step in range(2 * len(edges).bit_length())]
    counts = {round(len(edges) * factor) for factor in factors}
    counts = {count for count in counts if count > shown} | {0, shown, len(edges)}
    counts |= {round(count) for count in np.linspace(0, shown, _WITHIN)}
    found = []
    for count, factor in zip(sorted(counts), kept_first(measured, order, sorted(counts)), strict=True):
        on_the_way, tokens = connected(edges[:count], layers, measured.passes.ids.shape[1])
        found.append(Ablation(count, int(on_the_way.sum()), int(tokens.sum()), probability * float(factor)))
    return found


def _columns(
    passes: Passes, edges: EdgeList, scores: Float[Tensor, " edge"], order: Int[Tensor, " some"]
) -> TraceEdges:
    weights = edges.gathered([layer.weights for layer in passes.whole.passed])
    columns = (edges.layer, edges.head, edges.query, edges.key, weights.float(), scores.float())
    return TraceEdges(*(column[order].cpu().numpy() for column in columns))


def _factors(losses: Float[Tensor, " some"]) -> Float[np.ndarray, " some"]:
    return (-losses.double()).exp().cpu().numpy()
