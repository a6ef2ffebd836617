"""Masks as this package needs them: always there, always boolean."""

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import sdpa_mask


def boolean_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Transformers' `sdpa_mask`, but never None: None would leave causality to whoever guesses it."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


def allowed_edges(mask: Tensor | None, rows: int, keys: int, device: torch.device) -> Tensor:
    """The boolean mask (B or 1, 1, T, S) of keys that each query may see; causal where none was given.

    Raises:
        ValueError: an additive mask, which could carry a bias that gates would silently ignore.
    """
    if mask is None:
        causal = torch.ones(rows, keys, dtype=torch.bool, device=device).tril(keys - rows)
        return causal[None, None]
    if mask.dtype is not torch.bool:
        raise ValueError("gated attention takes a boolean attention mask (True where a key is visible), not a bias")
    return mask[..., :keys]


def same_document(position_ids: Tensor) -> Tensor:
    """(B, T) positions that restart at each packed document -> (B, 1, T, T): in the same document."""
    starts = position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1) != 1
    document = starts.cumsum(-1)
    return document[:, None, :, None] == document[:, None, None, :]
