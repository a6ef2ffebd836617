"""Attribution graphs of one prompt or many as a table in the terminal."""

from rich import box
from rich.table import Table
from rich.text import Text

from lit_sparse.common.formatting import MISSING, decimal, visible, visible_token
from lit_sparse.records.graph_summary import GraphSummary, ModelSpread, PromptsSummary, Spread
from lit_sparse.report.circuits.values import times

WIDTH = 80


def graphs_table(result: PromptsSummary) -> Table:
    """A line a prompt and model, and with several prompts the mean and standard deviation of each model."""
    names = "\n".join(_name(index, model) for index, model in enumerate(result.models))
    table = Table(
        box=box.SIMPLE_HEAD, width=WIDTH, title=Text("Attribution graphs", style="bold"), title_justify="left",
        caption=Text(
            f"{names}\nheads: heads with 80 % of the attention attribution; a pair: the same between two positions"
        ),
        caption_justify="left",
    )  # fmt: skip
    table.add_column("prompt", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("answer", no_wrap=True)
    table.add_column("", no_wrap=True)
    for heading in ("heads", "a pair", "nodes", "links"):
        table.add_column(heading, justify="right", no_wrap=True)
    for prompt in result.prompts:
        for index, side in enumerate([prompt] if prompt.against is None else [prompt, prompt.against]):
            table.add_row(*_row(side, index))
    if len(result.prompts) > 1:
        table.add_section()
        for index, model in enumerate(result.models):
            found = model.measured
            forms = {"heads_for_80": ".0f", "heads_for_80_by_connection": ".1f", "nodes": ".0f", "links": ".0f"}
            spreads = [_spread(found.get(key), form) for key, form in forms.items()]
            # Nodes and links are as wide as the terminal allows; how they spread is in summary.json.
            table.add_row("mean (spread)", "", _letter(index), *spreads[:2], *(one.split()[0] for one in spreads[2:]))
        if result.fewer_heads is not None:
            fewer = (result.fewer_heads, result.fewer_heads_by_connection)
            table.add_row("A against B", "", "", *(MISSING if one is None else times(one.mean) for one in fewer))
    return table


def _row(side: GraphSummary, index: int) -> list[Text]:
    answer = MISSING if side.answer is None else f"{visible_token(side.answer)} {decimal(side.probability, 2)}"
    prompt = Text(visible(side.prompt)) if index == 0 else Text("")
    pair = decimal(side.heads_for_80_by_connection, 1)
    numbers = (str(side.heads_for_80), pair, f"{side.nodes:,}", f"{side.links:,}")
    return [prompt, Text(answer), Text(_letter(index)), *(Text(cell) for cell in numbers)]


def _letter(index: int) -> str:
    return "AB"[index]


def _name(index: int, model: ModelSpread) -> str:
    sparse = " (sparse)" if model.sparse else ""
    means = {name: found.mean for name, found in model.measured.items()}
    return (
        f"{_letter(index)}: {visible(model.model or 'a model')}{sparse}, |error| / |MLP output| "
        f"{decimal(means.get('replacement_error'), 2)}, {decimal(means.get('seconds'), 1)} s a graph"
    )


def _spread(found: Spread | None, form: str) -> str:
    return MISSING if found is None else f"{found.mean:{form}} ({found.std:{form}})"
