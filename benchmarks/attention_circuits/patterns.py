"""The heads that copy a letter, in the dense and in the sparse model, with their attention.

The picture is docs/images/copy_heads.png.
"""

from pathlib import Path

import numpy as np
import torch
from attention_circuits.models import BASE, LIKE, load
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.attention_edges.everyday_text import everyday_prompts
from lit_sparse.circuits.attention_edges.goals import Distribution
from lit_sparse.circuits.attention_edges.passes import Passes, means
from lit_sparse.circuits.attention_edges.search import find_each
from lit_sparse.circuits.tasks import get_task
from lit_sparse.models.base import load_tokenizer
from lit_sparse.models.compared import files_of
from lit_sparse.report.shared import style

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "copy_heads.png"
_COLUMNS = 10


def picture(sentence: int = 0) -> None:
    """Finds the smallest sets of heads for one sentence of the task, and draws them."""
    tokenizer = load_tokenizer(files_of(BASE))
    ids = torch.tensor([get_task("letters").pairs(tokenizer, sentence + 1, seed=0)[sentence].clean])
    found = {}
    for name in (BASE, LIKE):
        with Stack(load(name, tokenizer)) as stack:
            passes = Passes(stack, ids, "mean", means=means(stack, everyday_prompts(tokenizer)))
            [heads] = find_each(passes, Distribution(passes.whole.logits), level="head")
            assert heads is not None
            weights = [layer.weights[0].numpy() for layer in passes.whole.passed]
            found[name] = {(layer, head): weights[layer][head] for layer, head, _, _ in sorted(heads.edges())}
        print(name, len(found[name]), "heads")
    draw(found, repr(tokenizer.decode(ids[0]))).savefig(PICTURE, dpi=style.DPI)
    print(PICTURE)


def draw(found: dict[str, dict[tuple[int, int], np.ndarray]], prompt: str) -> Figure:
    """The models' heads in rows, one block after the other."""
    rows = [-(-len(heads) // _COLUMNS) for heads in found.values()]
    figure = style.new_figure(8.6, 0.5 + 0.45 * len(found) + 0.98 * sum(rows), f"Heads that are enough for {prompt}")
    for block, (name, heads), height in zip(
        np.atleast_1d(figure.subfigures(len(found), 1, height_ratios=[0.45 + 0.98 * row for row in rows])),
        found.items(), rows, strict=True,
    ):  # fmt: skip
        edges = sum(int((weights > 0).sum()) for weights in heads.values())
        title = f"{name}: {len(heads)} heads, {edges:,} open edges"
        block.suptitle(title, fontsize=style.NORMAL, color=style.INK, x=0.01, ha="left", parse_math=False)
        panels = block.subplots(height, _COLUMNS, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, ((layer, head), weights) in zip(panels, heads.items(), strict=False):
            _pattern(axes, weights, f"{layer}.{head}")
    return figure


def _pattern(axes: Axes, weights: np.ndarray, title: str) -> None:
    allowed = np.tril(np.ones_like(weights, dtype=bool))
    axes.imshow(np.where(allowed, 1.0, np.nan), cmap=ListedColormap([style.CLOSED]), interpolation="nearest")
    shown = np.ma.masked_where(~(allowed & (weights > 0)), weights)
    axes.imshow(shown, cmap=style.WEIGHTS, norm=PowerNorm(0.5, 0.0, 1.0), interpolation="nearest")
    axes.set_title(title, fontsize=style.SMALL, color=style.INK, pad=2)
