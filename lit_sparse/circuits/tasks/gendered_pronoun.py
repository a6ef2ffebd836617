"""Gendered pronouns, after Mathwin et al., "Identifying a preliminary circuit for predicting gendered pronouns in
GPT-2 small" (2023)."""

from collections.abc import Mapping
from random import Random

from lit_sparse.circuits.tasks.task import Draft, Task, Template
from lit_sparse.circuits.tasks.vocabulary import Vocabulary
from lit_sparse.circuits.tasks.words import MEN, PLACES, ROLES, WOMEN

SURFACES = {
    "isnt": "So {name} is such a good {role}, isn't",
    "said": "As a {role}, {name} told us at the {place} that",
    "because": "Yesterday {name} went to the {place} because",
}
MALE, FEMALE = " he", " she"


class GenderedPronoun(Task):
    """The pronoun follows the name. The corruption is a name of the other gender, whose pronoun is the wrong answer."""

    name = "gendered_pronoun"
    description = "So Mary is such a good friend, isn't -> she, not he"

    def templates(self, vocabulary: Vocabulary) -> Mapping[str, Template]:
        women = vocabulary.keep(WOMEN, 4, "names of women")
        men = vocabulary.keep(MEN, 4, "names of men")
        roles = vocabulary.keep(ROLES, 2, "roles")
        places = vocabulary.keep(PLACES, 2, "places")

        def template(surface: str) -> Template:
            def draft(random: Random) -> Draft:
                sides = [(random.choice(women), FEMALE), (random.choice(men), MALE)]
                random.shuffle(sides)
                (name, pronoun), (other_name, other_pronoun) = sides
                role, place = random.choice(roles), random.choice(places)
                return Draft(
                    clean=surface.format(name=name, role=role, place=place),
                    corrupted=surface.format(name=other_name, role=role, place=place),
                    answers=[pronoun],
                    wrong=[other_pronoun],
                )

            return draft

        return {name: template(surface) for name, surface in SURFACES.items()}
