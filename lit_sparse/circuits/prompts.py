"""Prompts of a task as tensors, grouped by length so that none needs padding, and the metric on them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_sparse.circuits.tasks import Pair


@dataclass(frozen=True)
class Prompts:
    """Pairs of one length. `right` and `wrong` mark the answers among all tokens."""

    clean: Int[Tensor, "batch time"]
    corrupted: Int[Tensor, "batch time"]
    right: Bool[Tensor, "batch token"]
    wrong: Bool[Tensor, "batch token"]

    def __len__(self) -> int:
        return len(self.clean)

    def metric(self, logits: Float[Tensor, "batch token"]) -> Float[Tensor, " batch"]:
        """Log-odds of the right answers against the wrong ones: the logit difference if there is one of each."""
        right = logits.masked_fill(~self.right.to(logits.device), -torch.inf).logsumexp(-1)
        return right - logits.masked_fill(~self.wrong.to(logits.device), -torch.inf).logsumexp(-1)


def group(
    pairs: Iterable[Pair], vocabulary: int, *, size: int = 32, device: torch.device | str = "cpu"
) -> list[Prompts]:
    """Groups pairs of the same length, at most `size` together. `vocabulary` is the width of the logits."""
    by_length: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_length.setdefault(len(pair.clean), []).append(pair)
    return [
        _prompts(same[first : first + size], vocabulary, device)
        for same in by_length.values()
        for first in range(0, len(same), size)
    ]


def _prompts(pairs: Sequence[Pair], vocabulary: int, device: torch.device | str) -> Prompts:
    right, wrong = (torch.zeros(len(pairs), vocabulary, dtype=torch.bool, device=device) for _ in range(2))
    for index, pair in enumerate(pairs):
        right[index, list(pair.answers)] = True
        wrong[index, list(pair.wrong)] = True
    clean, corrupted = (
        torch.tensor([getattr(pair, name) for pair in pairs], device=device) for name in ("clean", "corrupted")
    )
    return Prompts(clean, corrupted, right, wrong)


def answer_mask(tokens: Sequence[int], vocabulary: int, device: torch.device | str = "cpu") -> Bool[Tensor, "1 token"]:
    """Mask of some tokens among all."""
    mask = torch.zeros(1, vocabulary, dtype=torch.bool, device=device)
    mask[0, list(tokens)] = True
    return mask
