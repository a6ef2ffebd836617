"""Indirect object identification after a longer context; arXiv 2512.05865 has a task of this name."""

from collections.abc import Mapping
from random import Random

from lit_sparse.circuits.tasks.ioi import IOI, Lead
from lit_sparse.circuits.tasks.vocabulary import Vocabulary
from lit_sparse.circuits.tasks.words import MOODS, SEASONS, SKIES, TIMES, WEATHER, WINDS

CONTEXTS = {
    "store": "One {time} in the {season} it was {weather}. The roads to the town were {mood}, and the sky was {sky}.",
    "then": "Once, in a {mood} town by the sea, the {season} was {weather}. "
    "One {time} the sky was {sky} and a {wind} wind came from the hills.",
    "working": "One {time} in the {season} the weather was {weather}. "
    "The sky was {sky}, a {wind} wind came from the sea, and the town was {mood}.",
    "decided": "One {weather} {time} in the {season} the town was {mood}. "
    "The sky was {sky} and a {wind} wind came from the hills.",
}
"""Contexts by surface of the sentence that follows. They name no person, no place to go to and nothing to give. Of
fifteen tried on SmolLM2-135M, with these the right name is most often the likeliest token; otherwise that is mostly
"the"."""


class IOILong(IOI):
    """`IOI` after two sentences about the weather and the town, in which words for season, time and weather are drawn.

    A prompt and its corruption have the same context. All words drawn are single tokens, so prompts of one template
    have the same length and the same meaning at each position.
    """

    name = "ioi_long"
    description = (
        "One evening in the spring ... When Mary and John went to the store, John gave a drink to -> Mary, not John"
    )

    def leads(self, vocabulary: Vocabulary) -> Mapping[str, Lead]:
        words = {
            "season": vocabulary.keep(SEASONS, 2, "seasons"),
            "time": vocabulary.keep(TIMES, 2, "times of the day"),
            "weather": vocabulary.keep(WEATHER, 2, "words for the weather"),
            "sky": vocabulary.keep(SKIES, 2, "words for the sky"),
            "wind": vocabulary.keep(WINDS, 2, "words for the wind"),
            "mood": vocabulary.keep(MOODS, 2, "words for the town"),
        }

        def lead(context: str) -> Lead:
            def draw(random: Random) -> str:
                return context.format(**{slot: random.choice(kept) for slot, kept in words.items()}) + " "

            return draw

        return {name: lead(context) for name, context in CONTEXTS.items()}
