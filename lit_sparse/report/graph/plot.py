"""Attention attribution over the number of heads: one curve a model, over many prompts."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lit_sparse.common.formatting import visible
from lit_sparse.report.shared import style

SHARE = 0.8
NAME_WIDTH = 24  # characters of a model in the legend
_COLOURS = (style.BLUE, style.VERMILLION)


def heads_figure(models: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Attribution that the strongest heads have together, over their number: the mean over prompts, bold, each prompt
    thin, and the number at 80 % of the mean curve.

    Args:
        models: by name, for every prompt the shares of heads with any attribution, largest first.
    """
    figure = style.new_figure(6.4, 4.2, "Share of the attention attribution over the number of heads")
    axes = style.plain_axes(figure.subplots())
    most = max((len(shares) for prompts in models.values() for shares in prompts), default=1)
    for (name, prompts), colour in zip(models.items(), _COLOURS, strict=False):
        curves = np.ones((len(prompts), most + 1))
        curves[:, 0] = 0
        for row, shares in zip(curves, prompts, strict=True):
            row[1 : len(shares) + 1] = np.cumsum(shares)
        for row in curves:
            axes.plot(row, color=colour, linewidth=0.5, alpha=0.25)
        mean = curves.mean(0)
        count = int(np.argmax(mean >= SHARE))
        axes.plot(mean, color=colour, linewidth=2, label=f"{_short(name)}: {count} heads for {SHARE:.0%}")
        axes.plot([count, count], [0, mean[count]], color=colour, linewidth=1, linestyle=":")
    axes.axhline(SHARE, color=style.FAINT, linewidth=1)
    axes.set(
        xlabel="number of heads, the strongest first",
        ylabel="share of the attention attribution",
        ylim=(0, 1.02),
        xlim=(0, most),
    )
    axes.yaxis.set_major_formatter(FuncFormatter(style.percent_tick))
    style.legend(axes)
    return figure


def _short(name: str) -> str:
    text = visible(name)
    return text if len(text) <= NAME_WIDTH else "…" + text[1 - NAME_WIDTH :]
