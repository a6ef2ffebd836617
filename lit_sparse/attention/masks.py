"""Edges that a model allows: an interval of keys for every query, so that no T x S mask is built.

Causal, windowed, chunked, padded and packed masks all let a query attend to one contiguous run of keys. Transformers
passes such a mask on as an int32 tensor (B or 1, 1, T, 2) of the first key and one past the last key, since it leaves
tensors of four dimensions unchanged. Any other mask is passed on as a boolean tensor (B or 1, 1, T, S).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.masking_utils import causal_mask_function, sdpa_mask

_CHUNK = 1 << 22  # edges in one block while a mask is turned into intervals: a few MB


@dataclass(frozen=True)
class EdgeMask:
    """The allowed edges. A query with an empty interval attends to no key.

    start, stop: interval of keys that each query may attend to, start <= key < stop, except for the holes.
    keys: S.
    holes: True where a query may attend to a key, (B or 1, 1, T, S); None if every query's keys are one run.
    """

    start: Int[Tensor, "#batch query"]
    stop: Int[Tensor, "#batch query"]
    keys: int
    holes: Bool[Tensor, "#batch 1 query key"] | None = None

    @classmethod
    def causal(cls, rows: int, keys: int, device: torch.device | str = "cpu") -> "EdgeMask":
        """Causal mask in which the last query may attend to every key."""
        stop = torch.arange(keys - rows + 1, keys + 1, dtype=torch.int32, device=device)[None].clamp_min(0)
        return cls(torch.zeros_like(stop), stop, keys)

    @classmethod
    def from_dense(cls, allowed: Bool[Tensor, "#batch 1 query key"]) -> "EdgeMask":
        start, stop, whole = _runs(allowed[:, 0])
        return cls(start, stop, allowed.shape[-1], None if whole else allowed)

    def block(self, rows: slice, keys: slice) -> Bool[Tensor, "#batch 1 rows columns"]:
        """The boolean mask of some queries and keys."""
        key = torch.arange(keys.start, keys.stop, dtype=torch.int32, device=self.start.device)
        block = (key >= self.start[:, rows, None]) & (key < self.stop[:, rows, None])
        return block[:, None] if self.holes is None else block[:, None] & self.holes[:, :, rows, keys]

    def last(self, rows: int) -> "EdgeMask":
        """The mask of the last queries."""
        first = self.start.shape[1] - rows
        holes = None if self.holes is None else self.holes[:, :, first:]
        return EdgeMask(self.start[:, first:], self.stop[:, first:], self.keys, holes)

    def dense(self) -> Bool[Tensor, "#batch 1 query key"]:
        return self.block(slice(0, self.start.shape[1]), slice(0, self.keys))

    def as_attention_mask(self) -> Int[Tensor, "#batch 1 query 2"]:
        """The tensor that transformers passes on, for masks without holes."""
        assert self.holes is None
        return torch.stack([self.start, self.stop], dim=-1)[:, None]

    def allowed(self) -> Int[Tensor, "#batch query"]:
        """Number of keys that each query may attend to."""
        if self.holes is not None:
            return self.dense().sum(-1)[:, 0]
        return (self.stop - self.start).clamp_min(0).long()

    def within_documents(self, position_ids: Int[Tensor, "#batch query"]) -> "EdgeMask":
        """The same mask without edges between packed documents. Positions restart at each document (T = S)."""
        restarts = position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1) != 1
        index = torch.arange(position_ids.shape[1], dtype=torch.int32, device=position_ids.device)
        first = torch.where(restarts, index, 0).cummax(dim=-1).values.to(torch.int32)
        # Every query's document ends where the next one starts.
        after = torch.where(restarts, index, self.keys).roll(-1, dims=-1)
        after[:, -1] = self.keys
        last = after.flip(-1).cummin(dim=-1).values.flip(-1).to(torch.int32)
        start, stop = torch.maximum(self.start, first), torch.minimum(self.stop, last)
        return EdgeMask(start, torch.maximum(stop, start), self.keys, self.holes)


def packed_causal_mask(position_ids: Int[Tensor, "batch query"]) -> Int[Tensor, "batch 1 query 2"]:
    """The mask of packed documents, made without reading values, so that a model never waits for its GPU.

    position_ids: positions, which restart at each document.
    """
    length = position_ids.shape[1]
    return EdgeMask.causal(length, length, position_ids.device).within_documents(position_ids).as_attention_mask()


def is_causal_only(config: PreTrainedConfig) -> bool:
    """True if every layer attends to all earlier tokens of a document, without windows, chunks or prefixes."""
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    limits = ("sliding_window", "attention_chunk_size", "use_bidirectional_attention")
    return kinds == {"full_attention"} and not any(getattr(config, name, None) for name in limits)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it looks at values: one clean graph break before the first layer
def mask_for_transformers(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor:
    """The mask in the form that transformers passes on (see the top of this file). The signature is that of
    `AttentionMaskInterface`.

    It is never None, since then nothing would enforce causality. A mask function is called for some rows at a time.
    """
    device = torch.device(device)
    padded = attention_mask is not None and (device.type == "meta" or not bool(attention_mask.all()))
    if mask_function is causal_mask_function and not padded:
        query = torch.arange(q_length, dtype=torch.int32, device=device) + (q_offset - kv_offset)
        stop = (query + 1).clamp(0, kv_length).to(torch.int32)
        return torch.stack([torch.zeros_like(stop), stop], dim=-1)[None, None]

    def rows(first: int, count: int) -> Tensor:
        block = boolean_mask(
            batch_size=batch_size,
            q_length=count,
            kv_length=kv_length,
            q_offset=q_offset + first,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            device=device,
            **kwargs,
        )
        return block[:1] if block.stride(0) == 0 else block  # one sequence stands for a batch that was expanded

    if device.type == "meta":
        return rows(0, q_length)
    step = max(1, _CHUNK // max(1, kv_length * batch_size))
    parts = []
    for first in range(0, q_length, step):
        start, stop, whole = _runs(rows(first, min(step, q_length - first))[:, 0])
        if not whole:
            return rows(0, q_length)
        parts.append(torch.stack([start, stop], dim=-1))
    return torch.cat(parts, dim=1)[:, None]


def mask_with_slots(
    batch_size: int, q_length: int, kv_length: int, q_offset: int | Tensor = 0, kv_offset: int = 0, **kwargs: Any
) -> Tensor:
    """`mask_for_transformers` with two more columns: the query's position in the whole sequence, and the first key's.

    A cache may hold only the last keys. Intervals stay int32; boolean masks become int64.
    """
    mask = mask_for_transformers(batch_size, q_length, kv_length, q_offset, kv_offset, **kwargs)
    query = torch.arange(q_length, device=mask.device) + q_offset
    slots = torch.stack([query, torch.zeros_like(query) + kv_offset], dim=-1).expand(len(mask), 1, -1, -1)
    dtype = torch.int64 if mask.dtype is torch.bool else torch.int32
    return torch.cat([mask.to(dtype), slots.to(dtype)], dim=-1)


def without_slots(mask: Tensor | None, rows: int, keys: int) -> tuple[Tensor | None, tuple[int, int]]:
    """The mask without the columns of `mask_with_slots`, and the positions of the first query and the first key.

    Raises:
        ValueError: keys come from a cache, and the mask is one of four dimensions that was given to the model.
    """
    if mask is not None and (mask.dtype is torch.int64 or (mask.dtype is torch.int32 and mask.shape[-1] == 4)):
        first_query, first_key = mask[0, 0, 0, -2:].tolist()
        mask = mask[..., :-2]
        return mask.bool() if mask.dtype is torch.int64 else mask, (first_query, first_key)
    if rows != keys:
        raise ValueError(
            "a mask of four dimensions does not say where in the sequence its queries are: give the whole sequence "
            "without a cache, or a mask of two dimensions"
        )
    return mask, (0, 0)


def boolean_mask(*args: Any, **kwargs: Any) -> Tensor:
    """Transformers' `sdpa_mask`, which here is never None."""
    mask = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})
    assert mask is not None
    return mask


def allowed_edges(mask: Tensor | None, rows: int, keys: int, device: torch.device) -> EdgeMask:
    """The allowed edges of each query, from the mask that arrived; causal if there is none.

    Raises:
        ValueError: the mask is additive, so it could have a bias that gates would silently ignore.
    """
    if mask is None:
        return EdgeMask.causal(rows, keys, device)
    if mask.dtype is torch.int32:
        start, stop = mask[:, 0].clamp_max(keys).unbind(-1)
        return EdgeMask(start, stop, keys)
    if mask.dtype is not torch.bool:
        raise ValueError("gated attention takes a boolean attention mask (True where a key is allowed), not a bias")
    return EdgeMask.from_dense(mask[..., :keys])


def _runs(allowed: Bool[Tensor, "#batch query key"]) -> tuple[Tensor, Tensor, bool]:
    """First allowed key of each query, one past the last one, and True if all keys in between are allowed."""
    if allowed.device.type == "meta":  # no values to look at
        index = torch.zeros(allowed.shape[:2], dtype=torch.int32, device="meta")
        return index, index, True
    keys = allowed.shape[-1]
    count = allowed.sum(-1, dtype=torch.int32)
    bits = allowed.to(torch.uint8)
    first = bits.argmax(-1).to(torch.int32)
    last = keys - bits.flip(-1).argmax(-1).to(torch.int32)
    stop = torch.where(count > 0, last, first)
    return first, stop, bool((stop - first == count).all())
