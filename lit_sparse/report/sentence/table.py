"""The circuit of a sentence in the terminal."""

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lit_sparse.common.formatting import MISSING, count, visible
from lit_sparse.records.sentence_circuit import SentenceCircuit, SentenceCircuits, by_strength
from lit_sparse.report.sentence.words import (
    agreement,
    comparison,
    controls,
    headline,
    key_name,
    legend,
    loss,
    magnitude,
    outcome_rows,
    position,
    quoted,
    sentence,
)

STRONGEST = 30
_WIDTH = 16  # of a token


def circuit_view(circuits: SentenceCircuits) -> Group:
    """Everything about one sentence, for `rich.print`: model after model."""
    parts: list[RenderableType] = []
    said = None
    for circuit in circuits.circuits:
        prompt = (circuit.prompt, circuit.answer, circuit.wrong)
        parts += [] if prompt == said else [_prompt(circuit)]
        said = prompt
        parts += [*_one(circuit), Text()]
    if (line := comparison(circuits.circuits)) is not None:
        parts.append(Text(line, style="bold"))
    return Group(*parts, Text(legend(circuits.circuits[0]), style="dim"))


def _prompt(circuit: SentenceCircuit) -> Text:
    prompt = Text(visible(circuit.prompt)).append(" -> ", style="dim").append(quoted(circuit.answer), "bold green")
    return prompt if circuit.wrong is None else prompt.append(f" rather than {quoted(circuit.wrong)}", style="dim")


def _one(circuit: SentenceCircuit) -> list[RenderableType]:
    parts: list[RenderableType] = [
        Text(f"{circuit.kind}: {visible(circuit.model)}", style="dim"),
        Text(headline(circuit), style="bold" if circuit.enough else "bold red"),
        outcomes_table(circuit),
        *edge_lines(circuit),
    ]
    parts += [Text(sentence(note)) for note in (controls(circuit), agreement(circuit)) if note is not None]
    return parts


def outcomes_table(circuit: SentenceCircuit) -> Table:
    """Predictions of the next token with all edges, the circuit's, all but these, and none."""
    rows = outcome_rows(circuit)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("likeliest token", no_wrap=True, overflow="ellipsis")
    shown = [("probability", f"p({quoted(circuit.answer, 8)})"), ("difference", "difference"), ("f", "f"), ("kl", "KL")]
    shown = [(name, head) for name, head in shown if any(getattr(row, name) != MISSING for row in rows)]
    for _, head in shown:
        table.add_column(Text(head), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.label, Text(row.token), *(getattr(row, name) for name, _ in shown))
    return table


def edge_lines(circuit: SentenceCircuit) -> list[Text]:
    """The strongest edges in the order of layers, under the position that reads."""
    strongest = by_strength(circuit.edges)[:STRONGEST]
    edges = sorted(strongest, key=lambda edge: (edge.query, edge.layer, edge.head, edge.key))
    cells = [
        (f"L{edge.layer} H{edge.head}", f"<- {key_name(circuit, edge, _WIDTH)}", f"weight {magnitude(edge.weight)}")
        for edge in edges
    ]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    lines: list[Text] = []
    for before, edge, row in zip([None, *edges], edges, cells, strict=False):
        if before is None or before.query != edge.query:
            lines.append(Text(f"{position(circuit, edge.query)} reads", style="bold"))
        padded = (set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True))
        lines.append(
            Text(f"  {'   '.join(padded)}   without it {loss(circuit, edge)}", no_wrap=True, overflow="ellipsis")
        )
    if (more := len(circuit.edges) - len(edges)) > 0:
        lines.append(Text(f"and {count(more)} more (circuit.json)", style="dim"))
    return lines
