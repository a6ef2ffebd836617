"""Circuit of one sentence, from text to a record."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from statistics import fmean

import torch
from transformers import PreTrainedModel

from lit_sparse.anatomy.stack import Stack
from lit_sparse.attention import attention_modules
from lit_sparse.circuits.attention_edges.describe import describe
from lit_sparse.circuits.attention_edges.everyday_text import everyday_prompts
from lit_sparse.circuits.attention_edges.goals import Difference, Distribution, Goal
from lit_sparse.circuits.attention_edges.mask import DEFAULT, Learning
from lit_sparse.circuits.attention_edges.passes import Passes, means
from lit_sparse.circuits.attention_edges.search import Found, find
from lit_sparse.circuits.prompts import answer_mask
from lit_sparse.circuits.tasks.vocabulary import NotExpressible, Tokenizer, Vocabulary
from lit_sparse.circuits.tasks.words import SUBJECTS
from lit_sparse.common.modes import frozen
from lit_sparse.common.progress import Bar
from lit_sparse.models.names import shown_name
from lit_sparse.records.sentence_circuit import Control, Off, SentenceCircuit

SPACE = " "
"""Space before a word that is an arbitrary answer."""

Bars = Callable[[str, int | None], Bar]


@dataclass(frozen=True)
class SentenceSettings:
    """Settings for finding the circuit of a sentence.

    Args:
        keep: the share f of the log-odds of right against wrong answer that the circuit keeps.
        nats: without a wrong answer, the largest KL(whole model || circuit) of the next token.
        off: what an edge passes that is off ("zero" or "mean"), if no corrupted prompt is given.
        searches: number of searches from different seeds. The smallest circuit found is reported, and the agreement of
            all.
        controls: number of arbitrary answers for which a circuit is searched too, if there is a wrong answer.
        learning: settings for learning the mask.
        seed: seed of the first search.

    Raises:
        ValueError: a number is out of its range.
    """

    keep: float = 0.9
    nats: float = 0.2
    off: Off = "mean"
    searches: int = 1
    controls: int = 0
    learning: Learning = DEFAULT
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError(f"keep is a share of the log-odds, between 0 and 1, got {self.keep}")
        if not self.nats > 0:
            raise ValueError(f"nats is the largest KL, above 0, not {self.nats}")
        if self.off not in ("zero", "mean"):
            raise ValueError(f"off is zero or mean for a single sentence, not {self.off!r}")
        if self.searches < 1 or self.controls < 0 or self.learning.steps < 1:
            raise ValueError("searches and steps are at least 1, controls at least 0")


def sentence_circuit(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompt: str,
    answer: str | None = None,
    wrong: str | None = None,
    settings: SentenceSettings | None = None,
    *,
    corrupted: str | None = None,
    answer_id: int | None = None,
    name: str | None = None,
    bars: Bars | None = None,
) -> SentenceCircuit:
    """The smallest set of attention edges found that keeps a model's prediction after a prompt. The dense or sparse
    model is left unchanged.

    With a wrong answer, the goal is the log-odds of answer against wrong answer. Without one it is the whole
    distribution of the next token. No single edge of the circuit can be removed.

    Args:
        tokenizer: a tokenizer of transformers, or a character tokenizer.
        answer: the right answer, one token with its leading space if it has one; default the model's prediction.
        wrong: the wrong answer, another token.
        corrupted: another prompt with the same number of tokens. A switched-off edge passes what it passes there. The
            circuit then explains the difference between the two prompts.
        answer_id: the right answer as a token id, for tokens that have no text of their own.
        name: name of the model in the record; default its own name, or that of its base.
        bars: makes a progress bar from a description and a total.

    Raises:
        ValueError: the prompt has fewer than two tokens, the corrupted prompt has another length, an answer is not one
            token after the prompt, the model does not prefer the answer, attention has no effect on it, or the model's
            family is not understood (see `Stack`).
    """
    settings = settings or SentenceSettings()
    vocabulary, started = Vocabulary(tokenizer), time.perf_counter()
    ids, from_text, wrong_id = encode_sentence(vocabulary, prompt, answer, wrong)
    other = None if corrupted is None else encode_corrupted(vocabulary, prompt, corrupted)
    sparse = bool(attention_modules(model))
    with frozen(model), Stack(model) as stack:
        off = settings.off if other is None else "corrupted"
        mean_over = (everyday_prompts(tokenizer) or [tuple(ids)]) if off == "mean" else []
        mean = means(stack, mean_over) if mean_over else None
        both = [None if tokens is None else torch.tensor([tokens], device=model.device) for tokens in (ids, other)]
        assert both[0] is not None
        passes = Passes(stack, both[0], off, means=mean, corrupted=both[1])
        answer_id = from_text if answer_id is None else answer_id
        answer_id = int(passes.whole.logits.argmax()) if answer_id is None else answer_id
        goal = _goal(passes, answer_id, wrong_id, settings)
        searches = []
        for search in range(settings.searches):
            found = _search(passes, goal, settings, search, "finding the circuit", bars)
            assert found is not None, "all edges together meet the goal"
            searches.append(found)
        best = min(searches, key=lambda found: found.size)
        controls = _controls(passes, goal, vocabulary, prompt, {answer_id, wrong_id}, settings, bars)
        return describe(
            passes,
            best,
            goal,
            tokenizer,
            model=name or shown_name(model),
            sparse=sparse,
            prompt=prompt,
            mean_over=[list(prompt) for prompt in mean_over],
            corrupted=corrupted,
            corrupted_ids=other or [],
            answer_id=answer_id,
            wrong_id=wrong_id,
            keep=settings.keep if isinstance(goal, Difference) else None,
            nats=None if isinstance(goal, Difference) else settings.nats,
            controls=controls,
            agreement=agreement([found.edges() for found in searches]),
            started=started,
        )


def encode_sentence(
    vocabulary: Vocabulary, prompt: str, answer: str | None, wrong: str | None
) -> tuple[list[int], int | None, int | None]:
    """Token ids of the prompt and of both answers.

    Raises:
        ValueError: see `sentence_circuit`.
    """
    ids = list(vocabulary.encode(prompt))
    if len(ids) < 2:
        raise ValueError(
            f"a circuit of attention edges needs a prompt of at least two tokens; {prompt!r} has {len(ids)}"
        )
    if wrong is not None and answer is None:
        raise ValueError("a wrong answer needs the right one too: add --answer")
    try:
        found = [None if text is None else vocabulary.continuation(prompt, text) for text in (answer, wrong)]
    except NotExpressible as error:
        raise ValueError(f"answer: {error}; most words need their leading space, as in ' Paris'") from None
    if found[0] is not None and found[0] == found[1]:
        raise ValueError(f"right and wrong answer are the same token: {answer!r}")
    return ids, found[0], found[1]


def encode_corrupted(vocabulary: Vocabulary, prompt: str, corrupted: str) -> list[int]:
    """Token ids of the corrupted prompt.

    Raises:
        ValueError: see `sentence_circuit`.
    """
    ids, other = (list(vocabulary.encode(text)) for text in (prompt, corrupted))
    if len(ids) != len(other):
        raise ValueError(
            f"the corrupted prompt has {len(other)} tokens, the prompt {len(ids)}: every edge needs its counterpart. "
            "Replace words by words with the same number of tokens, such as one first name by another"
        )
    if ids == other:
        raise ValueError("the corrupted prompt is the prompt: no edge makes a difference between them")
    return other


def agreement(circuits: Sequence[set[tuple[int, int, int, int]]]) -> float | None:
    """Mean Jaccard index over pairs of circuits; None for one circuit."""
    pairs = list(combinations(circuits, 2))
    return fmean(len(a & b) / max(1, len(a | b)) for a, b in pairs) if pairs else None


def _goal(passes: Passes, answer: int, wrong: int | None, settings: SentenceSettings) -> Goal:
    if wrong is None:
        return Distribution(passes.whole.logits, settings.nats)
    size, device = passes.whole.logits.shape[1], passes.whole.logits.device
    right_mask, wrong_mask = answer_mask([answer], size, device), answer_mask([wrong], size, device)
    goal = Difference(right_mask, wrong_mask, passes.whole.logits, passes.ablated(), settings.keep)
    if float(goal.whole) <= 0:
        raise ValueError(
            f"the model does not prefer the answer: its log-odds against the wrong one are {float(goal.whole):.2f}. "
            "Leave out --wrong to find the circuit of whatever the model predicts"
        )
    if float(goal.whole) <= float(goal.ablated):
        raise ValueError(
            f"the log-odds are {float(goal.whole):.2f} in the whole model and {float(goal.ablated):.2f} without any "
            "attention edge: there is no effect of attention to explain"
        )
    return goal


def _search(
    passes: Passes, goal: Goal, settings: SentenceSettings, search: int, what: str, bars: Bars | None
) -> Found | None:
    seed = settings.seed + search
    if bars is None:
        return find(passes, goal, settings.learning, seed=seed)
    with bars(what, settings.learning.steps) as bar:
        return find(passes, goal, settings.learning, seed=seed, advance=bar.update)


def _controls(
    passes: Passes,
    goal: Goal,
    vocabulary: Vocabulary,
    prompt: str,
    taken: set[int | None],
    settings: SentenceSettings,
    bars: Bars | None,
) -> list[Control]:
    """Circuits of arbitrary nouns, found by the same search."""
    found: list[Control] = []
    words = list(SUBJECTS)
    Random(settings.seed).shuffle(words)
    ablated = passes.ablated()
    for word in words:
        if len(found) == settings.controls or not isinstance(goal, Difference):
            break
        try:
            token = vocabulary.continuation(prompt, SPACE + word)
        except NotExpressible:
            continue
        if token in taken:
            continue
        other = goal.for_another(answer_mask([token], ablated.shape[1], ablated.device), ablated)
        circuit = _search(passes, other, settings, 0, f"control: {word}", bars)
        found.append(Control(answer=SPACE + word, edges=None if circuit is None else circuit.size))
    return found
