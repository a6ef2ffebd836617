"""Base of circuit tasks: templates filled with random words, checked against the tokenizer on the whole prompt."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random
from typing import ClassVar

from lit_sparse.circuits.tasks.vocabulary import NotExpressible, Tokenizer, Vocabulary

_ATTEMPTS = 300
"""Number of draws of one template in a row that may fail before the tokenizer counts as unable to express it."""


@dataclass(frozen=True)
class Pair:
    """A prompt, its corruption with the same number of tokens, and next tokens that distinguish the two.

    Both prompts end in the same token and differ somewhere before it. Special tokens are those that the
    tokenizer adds by itself (a beginning-of-sequence token where the model expects one).

    Attributes:
        clean: token ids of the prompt.
        corrupted: token ids of the corruption.
        answers: ids of single tokens that are right after the clean prompt.
        wrong: ids that the corruption makes right, or as plausible as the answers. None of them is an answer.
        template: name of the template that the prompt was made from.
    """

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answers: tuple[int, ...]
    wrong: tuple[int, ...]
    template: str


@dataclass(frozen=True)
class Draft:
    """A pair as text. Answers continue the prompt, so that most of them start with a space."""

    clean: str
    corrupted: str
    answers: Sequence[str]
    wrong: Sequence[str]


Template = Callable[[Random], Draft]
"""Fills a template's slots with words that the generator draws."""


class Task(ABC):
    """A family of prompts on which a model's behaviour has a known right answer.

    The measure of every task is the log-odds of right against wrong answers at the last position.
    """

    name: ClassVar[str]
    description: ClassVar[str]

    @abstractmethod
    def templates(self, vocabulary: Vocabulary) -> Mapping[str, Template]:
        """Every template by name, restricted to words that the vocabulary has.

        Raises:
            NotExpressible: the vocabulary lacks what the task needs.
        """

    def pairs(self, tokenizer: Tokenizer, number: int, seed: int) -> list[Pair]:
        """Different prompts, drawn from the templates in turn.

        The same (tokenizer, number, seed) gives the same pairs, and a smaller number gives the first of them. Another
        seed gives other pairs.

        Args:
            tokenizer: a transformers tokenizer, or a character tokenizer such as `AdditionTokenizer`.
            number: number of pairs.
            seed: seed of the draws.

        Raises:
            NotExpressible: the tokenizer cannot express the task, or cannot express that many different prompts.
            ValueError: `number` is below 1.
        """
        if number < 1:
            raise ValueError(f"number is the number of prompts, at least 1, not {number}")
        vocabulary = Vocabulary(tokenizer)
        try:
            templates = self.templates(vocabulary)
            draws = {name: Random(f"{self.name}/{name}/{seed}") for name in templates}
            pairs: dict[tuple[int, ...], Pair] = {}
            for name in islice(cycle(templates), number):
                pair = _draw(vocabulary, name, templates[name], draws[name], pairs)
                pairs[pair.clean] = pair
        except NotExpressible as error:
            raise NotExpressible(f"this tokenizer cannot express {self.name!r}: {error}") from None
        return list(pairs.values())


def _draw(
    vocabulary: Vocabulary, name: str, template: Template, random: Random, taken: Mapping[tuple[int, ...], Pair]
) -> Pair:
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            pair = _checked(vocabulary, template(random), name)
        except NotExpressible as error:
            reason = str(error)
            continue
        if pair.clean not in taken:
            return pair
        reason = f"it has only about {sum(other.template == name for other in taken.values())} different prompts"
    raise NotExpressible(f"template {name!r}: {reason}")


def _checked(vocabulary: Vocabulary, draft: Draft, template: str) -> Pair:
    """The draft as token ids.

    Raises:
        NotExpressible: the prompts are equal, or differ in length or at their ends, or an answer is not one token.
    """
    clean, corrupted = vocabulary.encode(draft.clean), vocabulary.encode(draft.corrupted)
    if len(clean) != len(corrupted):
        raise NotExpressible(
            f"{draft.clean!r} is {len(clean)} tokens and its corruption {draft.corrupted!r} is {len(corrupted)}"
        )
    if clean[-1] != corrupted[-1]:
        raise NotExpressible(f"{draft.clean!r} and its corruption {draft.corrupted!r} end in different tokens")
    answers, wrong = (
        tuple(vocabulary.continuation(draft.clean, text) for text in texts) for texts in (draft.answers, draft.wrong)
    )
    assert answers and wrong, draft
    if clean == corrupted:
        raise NotExpressible(f"{draft.clean!r} and its corruption {draft.corrupted!r} are the same tokens")
    if set(answers) & set(wrong):
        raise NotExpressible(f"after {draft.clean!r} right and wrong answers share a token")
    return Pair(clean, corrupted, answers, wrong, template)
