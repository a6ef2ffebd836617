"""The attention of a sentence head by head, with the explorer that the page of a run has."""

from lit_sparse.records.attention import ModelAttention, SentenceAttention
from lit_sparse.report.run.explorer import Explorer, Side, encode_sides
from lit_sparse.report.shared.rendering import render

DATA_BUDGET = 1_000_000  # characters of weights
MOST_OPEN = 50_000  # open edges; of a model with more, the strongest are drawn as of a dense one


def attention_html(attention: SentenceAttention) -> str:
    """The page as text: the model right of the sentence, the one beside it left of it."""
    sides = {_side("after", attention.model): attention.model.weights}
    if attention.against is not None:
        sides = {_side("before", attention.against): attention.against.weights} | sides
    title = "".join(attention.tokens)
    explorer = Explorer(title, attention.tokens, list(sides), encode_sides(sides, DATA_BUDGET))
    return render("attention.html", explorer=explorer)


def _side(place: str, one: ModelAttention) -> Side:
    return Side(place, one.kind.capitalize(), one.sparse and one.open <= MOST_OPEN, one.model)
