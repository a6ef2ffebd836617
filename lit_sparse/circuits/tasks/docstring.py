"""Argument names in docstrings, after Heimersheim and Janiak, "A circuit for Python docstrings in a 4-layer
attention-only transformer" (2023)."""

from collections.abc import Mapping
from random import Random

from lit_sparse.circuits.tasks.task import Draft, Task, Template
from lit_sparse.circuits.tasks.vocabulary import Vocabulary
from lit_sparse.circuits.tasks.words import ARGUMENTS, SUBJECTS

SURFACE = '''def {function}(self, {0}, {1}, {2}, {3}):
    """Return {4} {5}

    {mark} {a}: {6} {7}
    {mark} {b}: {8} {9}
    {mark}'''
MARKS = {"sphinx": ":param", "javadoc": "@param"}


class Docstring(Task):
    """A docstring describes the arguments in the order of the signature, and the third is next.

    The corruption swaps the third and the fourth argument of the signature. The wrong answer is the fourth. Both
    prompts have the same words, so only their order tells which argument is next.
    """

    name = "docstring"
    description = "def f(self, load, size, files, last) ... :param load: ... :param size: ... :param -> files, not last"

    def templates(self, vocabulary: Vocabulary) -> Mapping[str, Template]:
        arguments = vocabulary.keep(ARGUMENTS, 8, "names of arguments")
        subjects = vocabulary.keep(SUBJECTS, 8, "words")

        def template(mark: str) -> Template:
            def draft(random: Random) -> Draft:
                function, a, b, c, d = random.sample(arguments, 5)
                words = random.sample(subjects, 6)

                def prompt(third: str, fourth: str) -> str:
                    return SURFACE.format(a, b, third, fourth, *words, function=function, a=a, b=b, mark=mark)

                return Draft(prompt(c, d), prompt(d, c), answers=[f" {c}"], wrong=[f" {d}"])

            return draft

        return {name: template(mark) for name, mark in MARKS.items()}
