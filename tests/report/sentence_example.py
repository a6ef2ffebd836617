"""Circuits of sentences made by hand and of random edges."""

from lit_sparse.records.sentence_circuit import Control, KeptEdge, Outcome, SentenceCircuit, SentenceCircuits

TOKENS = [
    "When", " Mary", " and", " John", " went", " to", " the", " store", ",", " John", " gave", " a", " drink", " to",
]  # fmt: skip

# The circuit that GPT-2 small is known for: duplicate tokens, induction, S-inhibition, name movers (arXiv 2211.00593).
EDGES = [
    KeptEdge(0, 1, 9, 3, 0.91, 0.22), KeptEdge(0, 10, 9, 3, 0.55, 0.08), KeptEdge(2, 2, 4, 3, 0.78, 0.06),
    KeptEdge(3, 0, 9, 3, 0.83, 0.31), KeptEdge(4, 11, 4, 3, 0.97, 0.12), KeptEdge(5, 5, 9, 4, 0.62, 0.26),
    KeptEdge(5, 8, 9, 4, 0.31, 0.05), KeptEdge(6, 9, 9, 4, 0.58, 0.19), KeptEdge(7, 3, 13, 9, 0.44, 0.17),
    KeptEdge(7, 9, 13, 9, 0.52, 0.24), KeptEdge(8, 6, 13, 9, 0.71, 0.38), KeptEdge(8, 10, 13, 9, 0.66, 0.29),
    KeptEdge(9, 6, 13, 1, 0.74, 0.36), KeptEdge(9, 9, 13, 1, 0.83, 0.52), KeptEdge(10, 0, 13, 1, 0.49, 0.21),
    KeptEdge(10, 7, 13, 1, 0.58, -0.14), KeptEdge(11, 10, 13, 1, 0.63, -0.11), KeptEdge(10, 10, 13, 1, 0.28, 0.07),
    KeptEdge(9, 0, 13, 13, 0.004, 0.004), KeptEdge(1, 5, 1, 1, 0.33, 0.0),
]  # fmt: skip

# The same places in a sentence that would run a script, or break the page or the picture, if it were not escaped.
HOSTILE = [
    "<script>document.title='pwned'</script>", " </script><script>document.title='pwned'</script>", " $x_{$", "\n",
    '"><img src=x onerror="document.title=\'pwned\'">', " {{ 7 * 7 }}", " <!--", "\udc80", " \u202etxet", "\u2028",
    " 日本語", "'''\\", " http://example.com/a.js", " ",
]  # fmt: skip


def make_circuit(edges: list[KeptEdge] | None = None, tokens: list[str] | None = None, **changes) -> SentenceCircuit:
    tokens = TOKENS if tokens is None else tokens
    values = {
        "model": "gpt2", "sparse": False, "prompt": "".join(tokens), "tokens": tokens,
        "ids": list(range(len(tokens))), "goal": "difference",
        "answer": " Mary", "answer_id": 1, "wrong": " John", "keep": 0.9, "nats": None, "off": "mean",
        "layers": 12, "heads": 12,
        "allowed": 15_120, "open": 15_120, "edges": EDGES if edges is None else edges,
        "whole": _outcome(3.41, 0.0, 0.612, (" Mary", 0.612), (" them", 0.11), (" John", 0.02)),
        "circuit": _outcome(3.17, 0.142, 0.548, (" Mary", 0.548), (" them", 0.13)),
        "without": _outcome(0.21, 1.93, 0.083, (" them", 0.21), (" the", 0.17)),
        "ablated": _outcome(-0.04, 2.61, 0.021, (" the", 0.3), (" be", 0.1)),
        "faithfulness": 0.9304, "left": 0.0725,
        "controls": [Control(answer=" fish", edges=91), Control(answer=" green", edges=574),
                     Control(answer=" of", edges=None)],
        "agreement": 0.62, "seconds": 41.5,
    }  # fmt: skip
    return SentenceCircuit.model_validate(values | changes)


def make_two() -> SentenceCircuits:
    """A sparse circuit and the dense one beside it."""
    few = [edge for edge in EDGES if edge.effect > 0.2]
    sparse = make_circuit(few, model="release/smollm2_2048", sparse=True, open=418, agreement=0.88, controls=[])
    return SentenceCircuits(circuits=[sparse, make_circuit()])


def many_edges(count: int, size: int, layers: int = 30, heads: int = 9) -> list[KeptEdge]:
    """`count` edges spread over a large model, ever weaker."""
    edges: dict[tuple[int, int, int, int], KeptEdge] = {}
    step = 0
    while len(edges) < count:
        step += 1
        query = size - 1 - step * step % 7 % size
        place = (step * 11 % layers, step * 5 % heads, query, step * 13 % (query + 1))
        edges[place] = KeptEdge(*place, 1 / (1 + step % 9), (-1) ** (step % 11 == 0) * 0.5 / (1 + len(edges)))
    return list(edges.values())


def _outcome(difference: float, kl: float, probability: float, *predictions: tuple[str, float]) -> Outcome:
    return Outcome(difference=difference, kl=kl, probability=probability, predictions=list(predictions))
