"""Copying a sequence of letters: induction (Olsson et al., arXiv 2209.11895) without words that have a meaning."""

from collections.abc import Mapping
from random import Random
from string import ascii_uppercase

from lit_sparse.circuits.tasks.task import Draft, Task, Template
from lit_sparse.circuits.tasks.vocabulary import Vocabulary

LENGTHS = (8, 12)
"""Number of letters before the repetition."""


class LetterSequence(Task):
    """Distinct capital letters with commas, then on a new line the first three quarters again. The next one is asked.

    The corruption replaces the asked letter, in the first line, by one that is not in the prompt. That becomes the
    letter to copy, and is the wrong answer.
    """

    name = "letters"
    description = "G, K, D, R (new line) G, K, -> D (copy of a letter sequence, one replaced in the corruption)"

    def templates(self, vocabulary: Vocabulary) -> Mapping[str, Template]:
        letters = vocabulary.keep(ascii_uppercase, max(LENGTHS) + 1, "capital letters")

        def template(length: int) -> Template:
            def draft(random: Random) -> Draft:
                *first, other = random.sample(letters, length + 1)
                asked = 3 * length // 4
                corrupted = [*first[:asked], other, *first[asked + 1 :]]
                again = ", ".join(first[:asked]) + ","
                return Draft(
                    clean=", ".join(first) + "\n" + again,
                    corrupted=", ".join(corrupted) + "\n" + again,
                    answers=[f" {first[asked]}"],
                    wrong=[f" {other}"],
                )

            return draft

        return {f"length-{length}": template(length) for length in LENGTHS}
