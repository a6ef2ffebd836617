"""A trace in the terminal: the coloured prompt, the models' numbers side by side, and the edges shown."""

from collections.abc import Sequence
from itertools import islice

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lit_sparse.common.formatting import count, decimal, duration, percent, visible, visible_token
from lit_sparse.records.trace import Trace

LISTED = 24
_WIDTH = 18
_CAPTION = (
    "reach: tokens from which open edges lead to the answer; circuit: edges that keep the asked share of its "
    "probability p; reach in, p in: with these edges alone; s: seconds"
)


def trace_view(traces: Sequence[Trace], listed: int = LISTED) -> Group:
    """Terminal view of one prompt's traces, for `rich.print`."""
    parts: list[Text | Table] = []
    for trace in traces:
        parts += [Text(f"{trace.kind}: {visible(trace.model)}", style="dim"), coloured_prompt(trace), Text()]
    legend = Text("colours: closing all edges out of the token makes the answer ", style="dim")
    legend.append("less", style="bold white on blue").append(" or ").append("more", style="black on yellow")
    parts += [legend.append(" likely; "), summary_table(traces), edges_table(traces[0], listed)]
    legend.append("struck out", style="strike").append(": not reached by the shown edges")
    return Group(*parts)


def coloured_prompt(trace: Trace) -> Text:
    """The prompt's tokens, and the answer with its probability. The legend of `trace_view` explains the colours."""
    text = Text()
    largest = max((abs(change) for change in trace.cut), default=0.0)
    for token, change, number in zip(trace.tokens, trace.cut, trace.needed, strict=True):
        reached = number is not None and number <= trace.shown.edges
        text.append(visible(token), style=_style(change, largest) + ("" if reached else " strike dim"))
    text.append(" -> ", style="dim").append(visible(trace.answer), style="bold green")
    return text.append(f"  p = {decimal(trace.probability)}", style="dim")


def summary_table(traces: Sequence[Trace]) -> Table:
    """Table of what each model needs for the answer: open edges, tokens that reach it, edges shown."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column()
    for trace in traces:
        table.add_column(trace.kind, justify="right")
    for label, cells in summary_rows(traces):
        table.add_row(Text(label), *(Text(cell) for cell in cells))
    return table


def summary_rows(traces: Sequence[Trace]) -> list[tuple[str, list[str]]]:
    """Rows of `summary_table`: a label and one text per model."""
    size = len(traces[0].tokens)
    rows: list[tuple[str, list[str]]] = [
        ("answer's probability", [decimal(t.probability) for t in traces]),
        ("open edges", [f"{count(t.open)} ({percent(t.open / max(1, t.allowed))})" for t in traces]),
        ("tokens that reach the answer", [f"{sum(t.reaches)} of {size}" for t in traces]),
        ("edges shown", [count(t.shown.connected) for t in traces]),
        ("tokens that reach along them", [f"{t.shown.tokens} of {size}" for t in traces]),
        ("probability, only these kept", [decimal(t.shown.probability) for t in traces]),
        ("time", [duration(t.seconds) for t in traces]),
    ]
    return rows


def edges_table(trace: Trace, listed: int) -> Table:
    """Table of the first edges shown of one model."""
    shown, title = trace.shown.edges, f"Edges shown, {trace.kind} model"
    title += f", the first {listed} of {count(shown)}" if shown > listed else ""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for heading in ("layer.head", "query", "key", "weight", "logits", "p without it"):
        table.add_column(heading, justify="left" if heading in ("query", "key") else "right", no_wrap=True)
    rows = zip(*vars(trace.edges[:shown]).values(), trace.without, strict=True)
    for layer, head, query, key, weight, contribution, without in islice(rows, listed):
        table.add_row(
            f"{layer}.{head}",
            Text(f"{visible_token(trace.tokens[query], _WIDTH)} ({query})"),
            Text(f"{visible_token(trace.tokens[key], _WIDTH)} ({key})"),
            f"{weight:.3f}",
            Text(f"{contribution:+.2f}", style="blue" if contribution > 0 else "yellow"),
            decimal(without),
        )
    return table


def prompts_table(rows: Sequence[Sequence[Trace]]) -> Table:
    """Table of many prompts: one row per prompt and model, then the means."""
    table = Table(box=box.SIMPLE_HEAD, caption_justify="left", caption=_CAPTION)
    for heading in ("prompt", "answer", "model", "p", "tokens", "reach", "circuit", "reach in", "p in", "s"):
        table.add_column(heading, justify="left" if heading in ("prompt", "answer", "model") else "right", no_wrap=True)
    for traces in rows:
        for index, trace in enumerate(traces):
            first = index == 0
            prompt = visible(trace.prompt)
            table.add_row(
                Text(prompt if len(prompt) <= 30 else "..." + prompt[-27:]) if first else "",
                Text(visible_token(trace.answer, _WIDTH)) if first else "",
                trace.kind,
                decimal(trace.probability),
                str(len(trace.tokens)),
                str(sum(trace.reaches)),
                count(trace.shown.connected),
                str(trace.shown.tokens),
                decimal(trace.shown.probability),
                f"{trace.seconds:.1f}",
            )
    table.add_section()
    for column, mean in zip(zip(*rows, strict=True), means(rows), strict=True):
        table.add_row(
            "mean",
            "",
            column[0].kind,
            decimal(mean["probability"]),
            f"{mean['tokens']:.1f}",
            f"{mean['reach']:.1f}",
            count(mean["shown"]),
            f"{mean['shown_tokens']:.1f}",
            decimal(mean["shown_probability"]),
            f"{mean['seconds']:.1f}",
        )
    return table


def means(rows: Sequence[Sequence[Trace]]) -> list[dict[str, float]]:
    """Means over prompts for each model, in the order of every prompt's traces."""
    result = []
    for column in zip(*rows, strict=True):
        values = [row_of(trace) for trace in column]
        result.append({key: sum(row[key] for row in values) / len(values) for key in values[0]})
    return result


def row_of(trace: Trace) -> dict[str, float]:
    """Numbers of a trace."""
    return {
        "probability": trace.probability,
        "tokens": len(trace.tokens),
        "open": trace.open,
        "allowed": trace.allowed,
        "reach": sum(trace.reaches),
        "reachable": len(trace.edges),
        "shown": trace.shown.connected,
        "shown_tokens": trace.shown.tokens,
        "shown_probability": trace.shown.probability,
        "seconds": trace.seconds,
    }


def _style(change: float, largest: float) -> str:
    if largest <= 0 or abs(change) < 0.02:
        return ""
    if change > 0:
        return "black on yellow" if change > 0.3 * largest else "yellow"
    return "bold white on blue" if -change > 0.3 * largest else "bold blue" if -change > 0.05 * largest else "blue"
