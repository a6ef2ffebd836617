"""Wording of a sentence's circuit: the same in the terminal, in the picture and on the page."""

from typing import NamedTuple

from lit_sparse.common.formatting import MISSING, count, decimal, percent, signed, visible
from lit_sparse.records.sentence_circuit import KeptEdge, Outcome, SentenceCircuit


def quoted(token: str, width: int | None = None) -> str:
    """A token between quotes, its spaces kept: " John"."""
    text = visible(token)
    return f'"{text if width is None or len(text) <= width else text[: width - 1] + "…"}"'


def off(circuit: SentenceCircuit) -> str:
    """Effect of an edge that is off, as the end of a sentence."""
    if circuit.corrupted is not None:
        return f"passes its output from the prompt {quoted(circuit.corrupted)}"
    if circuit.off == "zero":
        return "passes nothing"
    return "passes the mean output of its head, which is the same for every sentence"


def position(circuit: SentenceCircuit, place: int, width: int | None = None) -> str:
    """A token and its number: " John" (9)."""
    return f"{quoted(circuit.tokens[place], width)} ({place})"


def key_name(circuit: SentenceCircuit, edge: KeptEdge, width: int | None = None) -> str:
    """Key of an edge: " John" (9), or itself."""
    return "itself" if edge.key == edge.query else position(circuit, edge.key, width)


def magnitude(value: float) -> str:
    """The size of a number, two digits after the point: 0.83, 0.004, <0.001."""
    size = abs(value)
    return "0" if size == 0 else "<0.001" if size < 0.001 else f"{size:.{2 if size >= 0.01 else 3}f}"


def headline(circuit: SentenceCircuit) -> str:
    """23 of 28,350 open attention edges are enough: f = 0.93 (asked for 0.9)"""
    edges, one = len(circuit.edges), len(circuit.edges) == 1
    verb = ("is" if one else "are") + (" enough" if circuit.enough else " not enough")
    return f"{count(edges)} of {count(circuit.open)} open attention edges {verb}: {goal(circuit)}"


def goal(circuit: SentenceCircuit) -> str:
    """Measure that the circuit reaches, and the one that was asked for."""
    if circuit.goal == "difference":
        return f"f = {decimal(circuit.faithfulness, 2)} (asked for {circuit.keep:g})"
    return f"KL {decimal(circuit.circuit.kl, 2)} nats (at most {circuit.nats:g})"


def loss(circuit: SentenceCircuit, edge: KeptEdge) -> str:
    """Effect of taking the edge out: f falls by 0.41"""
    name, worse, better = ("f", "falls", "rises") if circuit.goal == "difference" else ("KL", "rises", "falls")
    if edge.effect == 0:
        return f"{name} stays the same"
    return f"{name} {worse if edge.effect > 0 else better} by {magnitude(edge.effect)}"


def legend(circuit: SentenceCircuit) -> str:
    """The terms of a headline."""
    measure = "KL: between the next-token distributions of the whole model and of the circuit."
    if circuit.wrong is not None and circuit.goal == "difference":
        answers = f"{quoted(circuit.answer, 16)} against {quoted(circuit.wrong, 16)}"
        measure = f"f: the share of the log-odds of {answers} that the circuit keeps, from 0 (no edges) to 1 (all)."
    return f"{measure} An edge that is off {off(circuit)}."


class OutcomeRow(NamedTuple):
    """A forward pass as a row of a table."""

    label: str
    token: str
    probability: str
    difference: str
    f: str
    kl: str


def outcome_rows(circuit: SentenceCircuit) -> list[OutcomeRow]:
    """With all edges, with the circuit's only, without them, and with none (with all as in the corrupted prompt)."""

    def row(label: str, found: Outcome, f: float | None) -> OutcomeRow:
        token = quoted(found.predictions[0][0], 16) if found.predictions else MISSING
        f = None if circuit.faithfulness is None else f
        return OutcomeRow(
            label, token, decimal(found.probability), signed(found.difference, 2), decimal(f, 2), decimal(found.kl)
        )

    return [
        row("whole model", circuit.whole, 1.0),
        row("circuit only", circuit.circuit, circuit.faithfulness),
        row("without the circuit's edges", circuit.without, circuit.left),
        row("no edges" if circuit.corrupted is None else "all edges from the other prompt", circuit.ablated, 0.0),
    ]


def controls(circuit: SentenceCircuit) -> str | None:
    """The sizes of circuits of arbitrary answers; None without controls."""
    if not circuit.controls:
        return None
    numbers = [MISSING if one.edges is None else count(one.edges) for one in circuit.controls]
    answers = ", ".join(quoted(one.answer, 16) for one in circuit.controls)
    edges = "edge" if numbers == ["1"] else "edges"
    never = f"; {MISSING}: never reached" if MISSING in numbers else ""
    return f"control: an arbitrary answer takes {listed(numbers)} {edges} ({answers}{never})"


def agreement(circuit: SentenceCircuit) -> str | None:
    """Agreement of searches from other seeds; None where there was one search."""
    if circuit.agreement is None:
        return None
    return f"searches from other seeds have {percent(circuit.agreement)} of their edges in common"


def comparison(circuits: list[SentenceCircuit]) -> str | None:
    """The ratio of two circuits' sizes, and how many edges they share; None for one circuit."""
    if len(circuits) < 2:
        return None
    fewer, more = sorted(circuits, key=lambda circuit: len(circuit.edges))
    few, many = len(fewer.edges), len(more.edges)
    names = [fewer.kind, more.kind] if fewer.sparse != more.sparse else [visible(one.model) for one in (fewer, more)]
    ratio = f" ({many / few:.3g} times as many)" if few else ""
    needs = f"The {names[0]} model needs {counted(few)}, the {names[1]} one {count(many)}{ratio}."
    needs = f"Both models need {counted(few)}." if few == many else needs
    if few == 0 or (fewer.layers, fewer.heads, fewer.ids) != (more.layers, more.heads, more.ids):
        return needs
    shared = len({edge[:4] for edge in fewer.edges} & {edge[:4] for edge in more.edges})
    return f"{needs} {count(shared)} {'is' if shared == 1 else 'are'} in both."


def counted(edges: int) -> str:
    """1 attention edge, 23 attention edges"""
    return f"{count(edges)} attention edge{'' if edges == 1 else 's'}"


def listed(words: list[str]) -> str:
    """a, b and c"""
    return " and ".join([*[", ".join(words[:-1])] * (len(words) > 1), words[-1]])


def sentence(words: str) -> str:
    """Words as a sentence: a capital letter and a full stop."""
    return f"{words[:1].upper()}{words[1:]}."
