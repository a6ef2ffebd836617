"""The contexts in which each feature is most active, for people to read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_sparse.common.files import write_atomically

CONTEXTS, LENGTH, AFTER = 5, 24, 5
"""Contexts kept of a feature, tokens of a context, and tokens in it after the strongest one."""


class TopExamples:
    """The strongest contexts of each feature so far, one per sequence. Memory: L x F x 5 x 24 numbers, twice.

    Args:
        layers: L.
        features: F.
    """

    def __init__(self, layers: int, features: int):
        self.peaks = torch.zeros(layers, features, 0)
        self.values = torch.zeros(layers, features, 0, 0)
        self.ids = torch.zeros(layers, features, 0, 0, dtype=torch.long)
        self.places = torch.zeros(layers, features, 0, dtype=torch.long)

    def update(self, ids: Int[Tensor, "batch time"], acts: Float[Tensor, "layer batch time feature"]) -> None:
        """Adds one batch. All batches have the same length T."""
        length = min(LENGTH, ids.shape[1])
        peaks, at = acts.movedim(-1, 1).max(dim=-1)  # (L, F, B)
        first = (at + AFTER + 1 - length).clamp(0, ids.shape[1] - length)
        window = first[..., None] + torch.arange(length, device=ids.device)
        values = acts.movedim(-1, 1).gather(-1, window).cpu()
        rows = torch.arange(len(ids), device=ids.device)[:, None]
        new = peaks.cpu(), values, ids[rows, window].cpu(), (at - first).cpu()
        old = self.peaks, self.values, self.ids, self.places
        empty = self.peaks.shape[-1] == 0
        parts = [b if empty else torch.cat([a, b], dim=2) for a, b in zip(old, new, strict=True)]
        self.peaks, best = parts[0].topk(min(CONTEXTS, parts[0].shape[-1]), dim=-1)
        self.places = parts[3].gather(-1, best)
        wide = best[..., None].expand(-1, -1, -1, length)
        self.values, self.ids = parts[1].gather(2, wide), parts[2].gather(2, wide)

    def record(self, text: Callable[[int], str]) -> dict[str, Any]:
        """`{"features": {"{layer}_{feature}": [{"tokens": [str], "values": [float], "peak": int}]}}`, strongest first,
        without features that were never active.

        Args:
            text: gives the text of a token id.
        """
        texts = {index: text(index) for index in self.ids.unique().tolist()}
        features: dict[str, list[dict[str, Any]]] = {}
        for layer, feature in (self.peaks > 0).any(-1).nonzero().tolist():
            features[f"{layer}_{feature}"] = [
                {
                    "tokens": [texts[index] for index in self.ids[layer, feature, rank].tolist()],
                    "values": [round(value, 3) for value in self.values[layer, feature, rank].tolist()],
                    "peak": int(self.places[layer, feature, rank]),
                }
                for rank in range(self.peaks.shape[-1])
                if self.peaks[layer, feature, rank] > 0
            ]
        return {"features": features}

    def save(self, path: Path, text: Callable[[int], str]) -> None:
        """Writes the record, whole or not at all."""
        write_atomically(path, json.dumps(self.record(text), ensure_ascii=False).encode("utf-8", "replace"))
