"""One sentence's attention in the base and in the sparse model, as query x key maps."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from lit_sparse.common.formatting import visible, visible_token
from lit_sparse.records.run import AttentionExample
from lit_sparse.report.shared import style

MODELS = ("Base model", "Sparse model")
LABEL_WIDTH = 14  # characters of a token that its tick label shows
TITLE_WIDTH = 70
LABELLED_TOKENS = 48  # above this many tokens only every second, third, ... is labelled


def strongest_heads(example: AttentionExample, most: int) -> list[tuple[int, int]]:
    """The (layer, head) pairs with the most attention between tokens in the sparse model: see `moving_most`."""
    return moving_most(example.after, most)


def moving_most(weights: Float[np.ndarray, "layers heads tokens tokens"], most: int) -> list[tuple[int, int]]:
    """The (layer, head) pairs with the most attention between different tokens.

    Attention to the first token (the usual sink) and to oneself says little and only breaks ties.
    """
    weights = np.tril(np.nan_to_num(weights.astype(np.float64)))
    total = weights.sum((2, 3)).ravel()
    moved = np.tril(weights, k=-1)[..., 1:].sum((2, 3)).ravel()
    order = np.lexsort((-total, -moved))[:most]
    heads = weights.shape[1]
    return [(int(index) // heads, int(index) % heads) for index in order]


def open_edges(weights: Float[np.ndarray, "layers heads tokens tokens"]) -> Int[np.ndarray, "tokens tokens"]:
    """Number of heads in which the edge (query, key) is open."""
    opened: Bool[np.ndarray, "layers heads tokens tokens"] = np.tril(np.nan_to_num(weights) > 0)
    return np.asarray(opened.sum((0, 1)))


def attention_example(example: AttentionExample, heads: Sequence[tuple[int, int]] | None = None) -> Figure:
    """One sentence in the base and in the sparse model: the open edges of all heads together, then some heads' weights.

    Args:
        heads: (layer, head) pairs to show; default the three of `strongest_heads`.
    """
    heads = strongest_heads(example, 3) if heads is None else heads
    rows = 1 + len(heads)
    name = visible(example.title) if example.title else "one sentence in the base and in the sparse model"
    title = f"Attention: {name if len(name) <= TITLE_WIDTH else name[: TITLE_WIDTH - 1] + '…'}"
    figure = style.new_figure(8.6, 0.9 + 3.75 * rows, title)
    grid = figure.subplots(rows, 2, squeeze=False, sharex=True, sharey=True)

    summed = (open_edges(example.before), open_edges(example.after))
    everywhere = example.before.shape[0] * example.before.shape[1]
    count_norm = style.log_norm([1.0, float(everywhere)])
    for axes, counts, model in zip(grid[0], summed, MODELS, strict=True):
        _token_map(axes, counts, count_norm, example.tokens)
        style.heading(axes, f"{model}: {int(counts.sum()):,} open edges in all heads")
    bar = figure.colorbar(ScalarMappable(count_norm, style.WEIGHTS), ax=list(grid[0]), pad=0.02, aspect=25)
    style.log_bar(bar.ax, count_norm, style.plain_tick, f"heads with the edge open, of {everywhere:,}")

    weight_norm = PowerNorm(0.5, 0.0, 1.0)
    for row, (layer, head) in zip(grid[1:], heads, strict=True):
        for axes, weights, model in zip(row, (example.before, example.after), MODELS, strict=True):
            _token_map(axes, weights[layer, head], weight_norm, example.tokens)
            style.heading(axes, f"Layer {layer}, head {head}, {model.lower()}", bold=False)
    if len(heads):
        bar = figure.colorbar(
            ScalarMappable(weight_norm, style.WEIGHTS),
            ax=list(grid[1:].ravel()),
            pad=0.02,
            aspect=25 * len(heads),
        )
        bar.ax.yaxis.set_major_locator(FixedLocator([0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1]))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(style.plain_tick))
        style.bar_style(bar.ax, "attention weight (pale grey: the edge is closed)")
    figure.supxlabel("key: the token that the head reads", fontsize=style.NORMAL, color=style.INK)
    figure.supylabel("query: the token for which it reads", fontsize=style.NORMAL, color=style.INK)
    return figure


def _token_map(axes: Axes, values: Shaped[np.ndarray, "tokens tokens"], norm: Normalize, tokens: Sequence[str]) -> None:
    """Query x key map: allowed and closed pale grey, allowed and open coloured, not allowed blank."""
    style.plain_axes(axes, grid=False)
    size = len(tokens)
    allowed = np.tril(np.ones((size, size), dtype=bool))
    closed = ListedColormap([style.CLOSED])
    axes.imshow(np.where(allowed, 1.0, np.nan), cmap=closed, interpolation="nearest")
    shown = np.ma.masked_where(~(allowed & (np.nan_to_num(values) > 0)), values)
    axes.imshow(shown, cmap=style.WEIGHTS, norm=norm, interpolation="nearest")
    labelled = range(0, size, math.ceil(size / LABELLED_TOKENS))
    names = [visible_token(tokens[index], LABEL_WIDTH) for index in labelled]
    fontsize = float(np.clip(180 / max(1, len(names)), 4.5, style.SMALL))
    axes.set_xticks(list(labelled), names, rotation=90, fontsize=fontsize)
    axes.set_yticks(list(labelled), names, fontsize=fontsize)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)  # "$" is a token, not a formula
    axes.tick_params(length=0, pad=2)
