"""Subject-verb agreement across an attractor (Linzen et al., arXiv 1611.01368)."""

from collections.abc import Mapping
from random import Random

from lit_sparse.circuits.tasks.task import Draft, Task, Template
from lit_sparse.circuits.tasks.vocabulary import Vocabulary
from lit_sparse.circuits.tasks.words import NOUNS, VERBS

SURFACES = {
    "near": "I think that the {subject} near the {attractor}",
    "of": "They say that the {subject} of the {attractor}",
    "next-to": "She noticed that the {subject} next to the {attractor}",
    "relative": "I think that the {subject} that the {attractor} liked",
}


class SubjectVerbAgreement(Task):
    """The verb agrees with the subject, not with the noun next to it, which has the other number in the clean prompt.

    The corruption is the subject in the other number. Right answers are the forms of be and have in the subject's
    number, wrong answers those in the other number.
    """

    name = "subject_verb_agreement"
    description = "I think that the keys near the table -> are, were, have; not is, was, has"

    def templates(self, vocabulary: Vocabulary) -> Mapping[str, Template]:
        nouns = vocabulary.keep_pairs(NOUNS, 6, "nouns in both numbers")
        verbs = vocabulary.keep_pairs(VERBS, 1, "verbs in both numbers")

        def template(surface: str) -> Template:
            def draft(random: Random) -> Draft:
                subject, attractor = random.sample(nouns, 2)
                right = random.randrange(2)
                other = 1 - right
                return Draft(
                    clean=surface.format(subject=subject[right], attractor=attractor[other]),
                    corrupted=surface.format(subject=subject[other], attractor=attractor[other]),
                    answers=[f" {verb[right]}" for verb in verbs],
                    wrong=[f" {verb[other]}" for verb in verbs],
                )

            return draft

        return {name: template(surface) for name, surface in SURFACES.items()}
