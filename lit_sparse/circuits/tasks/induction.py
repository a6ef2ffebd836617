"""Induction: copying what came after the same word before (Olsson et al., arXiv 2209.11895)."""

from collections.abc import Mapping
from random import Random

from lit_sparse.circuits.tasks.task import Draft, Task, Template
from lit_sparse.circuits.tasks.vocabulary import Vocabulary

BLOCKS = (12, 16)
"""Number of words before the repetition."""
_POOL = 1000


class Induction(Task):
    """A block of random words of the tokenizer's own vocabulary, then its first three quarters again. The next word is
    asked.

    The corruption replaces the asked word, in the first copy, by one that is not in the prompt. That becomes the word
    to copy, and is the wrong answer.
    """

    name = "induction"
    description = "river glass seven moon ... river glass -> seven (random words, one replaced in the corruption)"

    def templates(self, vocabulary: Vocabulary) -> Mapping[str, Template]:
        words = vocabulary.own_words(at_most=_POOL, at_least=3 * max(BLOCKS))
        # Byte-level vocabularies have " word" also at the start of a text, sentencepiece adds that space by itself.
        lead = " " if len(vocabulary.encode(f" {words[0]}")) <= len(vocabulary.encode(words[0])) else ""

        def template(block: int) -> Template:
            def draft(random: Random) -> Draft:
                *first, other = random.sample(words, block + 1)
                asked = 3 * block // 4
                corrupted = [*first[:asked], other, *first[asked + 1 :]]
                return Draft(
                    clean=lead + " ".join(first + first[:asked]),
                    corrupted=lead + " ".join(corrupted + first[:asked]),
                    answers=[f" {first[asked]}"],
                    wrong=[f" {other}"],
                )

            return draft

        return {f"block-{block}": template(block) for block in BLOCKS}
