"""Why the next token came out as it did: what can reach the answer, what each edge carries, what the rest is worth.

All with attention weights frozen (`frozen.py`). Edges from a position to itself move nothing between positions: like
the MLPs they belong to what a position does with what it has, they are always kept and carry no contribution.

Contribution of an edge: w_ij times d(answer's logit - mean logit) / d w_ij, the mean over w of all edges between
positions scaled by 1/2, 3/4 and 1 together. By the chain rule that is (w_ij v_j W_O) . d/d(what the attention adds at
query i): gradient x contribution with frozen patterns, smoothed towards weaker edges as in Self-Attention Attribution
(Hao et al., arXiv 2004.11207, who integrate from 0). Norms and MLPs are differentiated. The gradient at the full
weights alone is blind to what is saturated and finds far larger graphs; below half the weights single points explode
(on SmolLM2-135M layer 0 then holds up to 69 % of all contributions, instead of 6 %). So contributions do not add up to
the logit; shares are taken of the sum of |contribution|. The mean logit is taken off because a shift of all logits
changes nothing, as circuit-tracer does.

Shown: the smallest number of strongest edges that, kept alone in a forward pass, leave the answer at least `keep` of
its probability, and so does every larger number that was tried.

Cut of a token: all edges closed whose key is its position (attention knockout, Geva et al., arXiv 2304.14767).
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from lit_sparse.anatomy.reach import reachable
from lit_sparse.anatomy.stack import Stack
from lit_sparse.attention import attention_modules
from lit_sparse.circuits.tasks.vocabulary import NotExpressible, Tokenizer, Vocabulary
from lit_sparse.models.tokens import token_text
from lit_sparse.records.trace import Ablation, Trace, TraceEdges
from lit_sparse.tracing.frozen import Frozen
from lit_sparse.tracing.paths import NEVER, connected, needed, shortest_path

SCALINGS = (1 / 2, 3 / 4, 1)
KEEP = 0.9
PREDICTIONS = 5
_TOKENS_AT_ONCE = 640


def trace(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompt: str,
    answer: str | None = None,
    *,
    answer_id: int | None = None,
    keep: float = KEEP,
    name: str | None = None,
) -> Trace:
    """Traces the token after a prompt back through a model, dense or sparse, which is left as it was.

    Memory and time grow with layers x heads x T^2: for prompts of up to a few hundred tokens.

    Args:
        tokenizer: of transformers, or a character tokenizer.
        answer: the token to explain, with its leading space if it has one; default the model's own prediction.
        answer_id: the same as a token's id.
        keep: share of the answer's probability that the shown edges have to keep.
        name: what to call the model; default its configuration's name.

    Raises:
        ValueError: a prompt of less than two tokens, an answer that is not one token after it, `keep` out of range, or
            a model whose family is not understood (see `Stack`).
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is a share of the answer's probability, in (0, 1], got {keep}")
    ids, from_text = encode(tokenizer, prompt, answer)
    answer_id = from_text if answer_id is None else answer_id
    sparse = bool(attention_modules(model))
    started = time.perf_counter()
    with Stack(model) as stack:
        frozen = Frozen(stack, torch.tensor([ids], device=model.device))
        probabilities = frozen.full.softmax(-1)
        answer_id = int(probabilities.argmax()) if answer_id is None else answer_id
        likeliest = probabilities.topk(min(PREDICTIONS, len(probabilities)))
        scores = contributions(frozen, answer_id)
        weights = [weight[0].float().cpu().numpy() for weight in frozen.weights]
        layers, size = len(weights), len(ids)
        seen = reachable(weights)
        edges = moving_edges(weights, [score.float().cpu().numpy() for score in scores], seen)
        full = float(probabilities[answer_id])
        ablations = _ablations(frozen, edges, answer_id, keep * full)
        cut = cuts(frozen, answer_id)
    places = needed(edges, layers, size)
    paths = [
        None if count == NEVER else shortest_path(edges[: int(count)], layers, size, token)
        for token, count in enumerate(places)
    ]
    return Trace(
        model=name or model.config.name_or_path or model.config.model_type,
        sparse=sparse,
        prompt=prompt,
        tokens=[token_text(tokenizer, token) for token in ids],
        answer=token_text(tokenizer, answer_id),
        answer_id=answer_id,
        layers=layers,
        heads=max(len(weight) for weight in weights),
        probability=full,
        predictions=[(token_text(tokenizer, int(i)), float(p)) for p, i in zip(*likeliest, strict=True)],
        allowed=frozen.allowed,
        open=sum(int(np.count_nonzero(weight)) for weight in weights),
        edges=edges,
        reaches=seen[0].tolist(),
        needed=[None if count == NEVER else int(count) for count in places],
        cut=cut.tolist(),
        paths=paths,
        ablations=ablations,
        keep=keep,
        shown=smallest(ablations, keep * full),
        seconds=time.perf_counter() - started,
    )


def encode(tokenizer: Tokenizer, prompt: str, answer: str | None) -> tuple[list[int], int | None]:
    """The prompt's tokens and the answer's.

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


def contributions(
    frozen: Frozen, answer: int, scalings: Sequence[float] = SCALINGS
) -> list[Float[Tensor, "head query key"]]:
    """Every edge's contribution, per layer (formula above). 0 at queries' own positions."""
    size = frozen.embedding.shape[1]
    between = ~torch.eye(size, dtype=torch.bool, device=frozen.embedding.device)
    scaling = torch.tensor(scalings, device=between.device)[:, None, None, None]
    factor = torch.where(between, scaling, 1.0)
    leaves = [(weight.float() * factor).requires_grad_() for weight in frozen.weights]
    with torch.enable_grad():
        logits = frozen.logits(leaves)
        margin = logits[:, answer] - logits.mean(-1)
        gradients = torch.autograd.grad(margin.sum(), leaves)
    return [
        torch.where(between, weight[0] * gradient.mean(0), 0.0)
        for weight, gradient in zip(frozen.weights, gradients, strict=True)
    ]


def moving_edges(
    weights: Sequence[Float[np.ndarray, "head query key"]],
    scores: Sequence[Float[np.ndarray, "head query key"]],
    seen: np.ndarray,
) -> TraceEdges:
    """The open edges between different positions that a walk back passes (`seen` as from `reachable`), strongest
    first."""
    columns: list[list[np.ndarray]] = []
    for layer, (weight, score) in enumerate(zip(weights, scores, strict=True)):
        head, query, key = np.nonzero((weight != 0) & seen[layer + 1][:, None])
        moving = query != key
        head, query, key = head[moving], query[moving], key[moving]
        place = (head, query, key)
        columns.append([np.full(len(head), layer), head, query, key, weight[place], score[place]])
    edges = TraceEdges(*(np.concatenate(column) for column in zip(*columns, strict=True)))
    return edges[np.argsort(-np.abs(edges.contribution), kind="stable")]


@torch.no_grad()
def keep_strongest(frozen: Frozen, edges: TraceEdges, counts: Sequence[int]) -> Float[Tensor, "count token"]:
    """Logits of real forward passes in which of all edges between positions only the strongest few are kept."""
    ranks = []
    for layer, weight in enumerate(frozen.weights):
        rank = torch.full(weight.shape[1:], len(edges), dtype=torch.int64)
        (places,) = np.nonzero(edges.layer == layer)
        index = (torch.from_numpy(column[places]) for column in (edges.head, edges.query, edges.key))
        rank[tuple(index)] = torch.from_numpy(places)
        rank.diagonal(dim1=-2, dim2=-1).fill_(-1)
        ranks.append(rank.to(weight.device))
    parts = []
    for some in _chunks(frozen, counts):
        limit = torch.tensor(some, device=ranks[0].device)[:, None, None, None]
        parts.append(frozen.logits([w * (rank < limit) for w, rank in zip(frozen.weights, ranks, strict=True)]))
    return torch.cat(parts)


@torch.no_grad()
def cuts(frozen: Frozen, answer: int) -> Float[np.ndarray, " position"]:
    """Change of the answer's log-probability when all edges out of one position are closed, for every position."""
    size = frozen.embedding.shape[1]
    position = torch.arange(size, device=frozen.embedding.device)
    parts: list[Tensor] = []
    for some in _chunks(frozen, range(size)):
        gone = torch.tensor(some, device=position.device)[:, None, None]
        kept = (position != gone) | (position[:, None] == position)  # (some, query, key)
        parts.append(_log_probability(frozen.logits([w * kept[:, None] for w in frozen.weights]), answer))
    return (torch.cat(parts) - _log_probability(frozen.full, answer)).double().cpu().numpy()


def smallest(ablations: Sequence[Ablation], probability: float) -> Ablation:
    """The first of the ablations, by rising number of edges, from which on all have at least that probability (within
    rounding; the last one is the whole)."""
    found = ablations[-1]
    for ablation in reversed(ablations):
        if ablation.probability < probability * (1 - 1e-4):
            break
        found = ablation
    return found


def _ablations(frozen: Frozen, edges: TraceEdges, answer: int, probability: float) -> list[Ablation]:
    """Forward passes with ever fewer edges, by factors of sqrt 2 and then 2, and closer together where the answer is
    lost."""
    layers, size = len(frozen.weights), frozen.embedding.shape[1]

    def measure(counts: Sequence[int]) -> list[Ablation]:
        found = keep_strongest(frozen, edges, counts).softmax(-1)[:, answer].tolist()
        measured = []
        for count, p in zip(counts, found, strict=True):
            on_the_way, tokens = connected(edges[:count], layers, size)
            measured.append(Ablation(count, int(on_the_way.sum()), int(tokens.sum()), p))
        return measured

    factors = [2 ** (-i / 2) for i in range(10)] + [2.0**-i for i in range(5, len(edges).bit_length() + 1)]
    ablations = measure(sorted({round(len(edges) * factor) for factor in factors} | {0}))
    upper = smallest(ablations, probability).edges
    lower = max((ablation.edges for ablation in ablations if ablation.edges < upper), default=0)
    between = sorted({round(x) for x in np.linspace(lower, upper, 10)[1:-1]} - {lower, upper})
    return sorted(ablations + (measure(between) if between else []), key=lambda ablation: ablation.edges)


def _log_probability(logits: Float[Tensor, "*batch token"], answer: int) -> Float[Tensor, "*batch"]:
    return logits.log_softmax(-1)[..., answer]


def _chunks(frozen: Frozen, items: Sequence[int]) -> Iterator[list[int]]:
    """Some at a time, so that memory stays bounded."""
    step = max(1, _TOKENS_AT_ONCE // frozen.embedding.shape[1])
    for first in range(0, len(items), step):
        yield list(items[first : first + step])
