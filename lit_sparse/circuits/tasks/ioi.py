"""Indirect object identification, after Wang et al., "Interpretability in the wild", arXiv 2211.00593."""

from collections.abc import Callable, Mapping
from random import Random

from lit_sparse.circuits.tasks.task import Draft, Task, Template
from lit_sparse.circuits.tasks.vocabulary import Vocabulary
from lit_sparse.circuits.tasks.words import MEN, PLACES, THINGS, WOMEN

SURFACES = {
    "store": "When {0} and {1} went to the {place}, {2} gave a {thing} to",
    "then": "Then, {0} and {1} went to the {place}. {2} gave a {thing} to",
    "working": "While {0} and {1} were working at the {place}, {2} gave a {thing} to",
    "decided": "After {0} and {1} found a {thing} at the {place}, {2} decided to give it to",
}

Lead = Callable[[Random], str]
"""Draws the text before the sentence of a prompt."""


class IOI(Task):
    """The name that is not repeated receives the thing.

    Templates have each surface in both orders: ABBA (the receiver is named first) and BABA. The corruption replaces the
    second mention of the giver (S2) by a third name, so that both names become equally plausible. The wrong answer is
    the giver.
    """

    name = "ioi"
    description = "When Mary and John went to the store, John gave a drink to -> Mary, not John"

    def templates(self, vocabulary: Vocabulary) -> Mapping[str, Template]:
        names = vocabulary.keep(WOMEN + MEN, 6, "names")
        places = vocabulary.keep(PLACES, 2, "places")
        things = vocabulary.keep(THINGS, 2, "things")
        leads = self.leads(vocabulary)

        def template(surface: str, lead: Lead, receiver_first: bool) -> Template:
            def draft(random: Random) -> Draft:
                receiver, giver, third = random.sample(names, 3)
                couple = (receiver, giver) if receiver_first else (giver, receiver)
                place, thing = random.choice(places), random.choice(things)
                before = lead(random)
                return Draft(
                    clean=before + surface.format(*couple, giver, place=place, thing=thing),
                    corrupted=before + surface.format(*couple, third, place=place, thing=thing),
                    answers=[f" {receiver}"],
                    wrong=[f" {giver}"],
                )

            return draft

        return {
            f"{order}-{name}": template(surface, leads[name], order == "abba")
            for name, surface in SURFACES.items()
            for order in ("abba", "baba")
        }

    def leads(self, vocabulary: Vocabulary) -> Mapping[str, Lead]:
        """Text before the sentence in a prompt and its corruption, by surface: here none.

        Raises:
            NotExpressible: the vocabulary lacks words for it.
        """
        return {name: lambda _: "" for name in SURFACES}
