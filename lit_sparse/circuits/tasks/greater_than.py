"""Greater-Than, after Hanna et al., "How does GPT-2 compute greater-than?", arXiv 2305.00586."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from lit_sparse.circuits.tasks.task import Draft, Task, Template
from lit_sparse.circuits.tasks.vocabulary import NotExpressible, Vocabulary
from lit_sparse.circuits.tasks.words import EVENTS

SURFACES = {
    "lasted": "The {event} lasted from the year {year} to the year {start}",
    "began": "The {event} began in the year {year} and ended in the year {start}",
    "started": "The {event} started in {year} and it ended in {start}",
}
_CENTURIES = range(11, 20)
_LEAD = "the year "
_ENOUGH = 0.6
"""Part of the possible next digits that must be tokens after a year's first digits for them to be used."""


@dataclass(frozen=True)
class YearSplit:
    """A tokenizer's split of years: the prompt gives the first digits, and the token with the next digits is asked.

    Attributes:
        given: number of the year's digits at the end of the prompt.
        asked: number of digits of the token after them.
    """

    given: int
    asked: int

    @property
    def dummy(self) -> str:
        """Next digits in the corruption, after which every year is later."""
        return "01" if self.asked == 2 else "0"

    @property
    def completes(self) -> bool:
        """True if the asked token ends the year."""
        return self.given + self.asked == 4

    def tokens(self, vocabulary: Vocabulary) -> dict[str, list[str]]:
        """Next digits, by start of a year, that are one token after it in a whole year, ascending."""
        possible = [f"{number:0{self.asked}}" for number in range(10**self.asked)]
        decades = [""] if self.given == 2 else range(10)
        tokens = {}
        for start in (f"{century}{decade}" for century in _CENTURIES for decade in decades):
            nexts = [digits for digits in possible if self._fits(start, digits, vocabulary)]
            if len(nexts) >= _ENOUGH * len(possible) and self.dummy in nexts:
                tokens[start] = nexts
        return tokens

    def _fits(self, start: str, digits: str, vocabulary: Vocabulary) -> bool:
        before = _LEAD + start
        if not vocabulary.is_one_token(digits, after=before):
            return False
        return self.completes or vocabulary.is_one_token("5", after=before + digits)  # the last digit is separate


SPLITS = (YearSplit(given=2, asked=2), YearSplit(given=2, asked=1), YearSplit(given=3, asked=1))
"""17|41 (as GPT-2 does), 1|7|4|1 (SmolLM2), 174|1 (groups of up to three digits: Llama-3)."""


class GreaterThan(Task):
    """An event ends after it began.

    `... from the year 1741 to the year 17`: with two-digit tokens the answers are 42 to 99 and the wrong ones 00 to 41,
    as in the paper. If each digit is a token, the next digit is asked: answers are 5 to 9, wrong ones 0 to 3. The digit
    4 may continue either way and is neither. If years are split 174|1, the prompt ends in 174 and one digit is asked.
    The corruption begins in 01 (two digits) or 0 (one digit), after which every year is plausible.
    """

    name = "greater_than"
    description = "The war lasted from the year 1741 to the year 17 -> 42 to 99 (or a digit above 4)"

    def templates(self, vocabulary: Vocabulary) -> Mapping[str, Template]:
        split, tokens = _year_tokens(vocabulary)
        events = vocabulary.keep(EVENTS, 4, "nouns")

        def template(surface: str) -> Template:
            def draft(random: Random) -> Draft:
                event, start = random.choice(events), random.choice(list(tokens))
                nexts = [digits for digits in tokens[start] if digits != split.dummy]
                margin = len(nexts) // 5  # years that leave some right and some wrong answers
                began = random.choice(nexts[margin:-margin])
                rest = "" if split.completes else str(random.randrange(1, 10))
                return Draft(
                    clean=surface.format(event=event, year=start + began + rest, start=start),
                    corrupted=surface.format(event=event, year=start + split.dummy + rest, start=start),
                    answers=[digits for digits in tokens[start] if digits > began],
                    wrong=[d for d in tokens[start] if d < began or (d == began and split.completes)],
                )

            return draft

        return {name: template(surface) for name, surface in SURFACES.items()}


def _year_tokens(vocabulary: Vocabulary) -> tuple[YearSplit, dict[str, list[str]]]:
    """The split of years, and the tokens after each start that has enough of them."""
    for split in SPLITS:
        if tokens := split.tokens(vocabulary):
            return split, tokens
    vocabulary.encode(_LEAD + "1741")  # raises where it is unknown
    raise NotExpressible("years are split neither 17|41 nor 1|7|4|1 nor 174|1")
