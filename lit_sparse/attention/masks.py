"""Which edges a model allows: for every query an interval of keys, so that nothing T x S is ever built.

Causal, windowed, chunked, padded and packed masks all let a query see one contiguous run of keys. Through
transformers such a mask travels as an int32 tensor (B or 1, 1, T, 2) of first key and one past the last one (a tensor
of four dimensions passes through its machinery as it is); any other mask travels as the boolean (B or 1, 1, T, S).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.masking_utils import causal_mask_function, sdpa_mask

_CHUNK = 1 << 22  # edges looked at together while a mask is summed up: a few MB


@dataclass(frozen=True)
class EdgeMask:
    """The allowed edges. A query whose interval is empty sees nothing.

    start, stop: the keys start <= key < stop are visible, but for the holes.
    keys: S.
    holes: True where a key is visible, (B or 1, 1, T, S); None unless some query's keys are no single run.
    """

    start: Int[Tensor, "#batch query"]
    stop: Int[Tensor, "#batch query"]
    keys: int
    holes: Bool[Tensor, "#batch 1 query key"] | None = None

    @classmethod
    def causal(cls, rows: int, keys: int, device: torch.device | str = "cpu") -> "EdgeMask":
        """The last query sees every key."""
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
        """The tensor that travels through transformers; without holes."""
        assert self.holes is None
        return torch.stack([self.start, self.stop], dim=-1)[:, None]

    def allowed(self) -> Int[Tensor, "#batch query"]:
        """How many keys each query sees."""
        if self.holes is not None:
            return self.dense().sum(-1)[:, 0]
        return (self.stop - self.start).clamp_min(0).long()

    def within_documents(self, position_ids: Int[Tensor, "#batch query"]) -> "EdgeMask":
        """The same mask, without edges between packed documents; their positions restart at each (T = S)."""
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
    """The mask of packed documents, without a look at values: a model given it never waits for its GPU.

    position_ids: restart at each document.
    """
    length = position_ids.shape[1]
    return EdgeMask.causal(length, length, position_ids.device).within_documents(position_ids).as_attention_mask()


def is_causal_only(config: PreTrainedConfig) -> bool:
    """Whether every layer of a model sees all earlier tokens of its document: no windows, chunks or prefixes."""
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
    """The mask in the form that travels (see above); the signature is `AttentionMaskInterface`'s.

    Never None: that would leave causality to whoever guesses it. A mask function is asked for some rows at a time.
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

    A cache may hold the last keys only. Intervals stay int32; what was boolean is int64.
    """
    mask = mask_for_transformers(batch_size, q_length, kv_length, q_offset, kv_offset, **kwargs)
    query = torch.arange(q_length, device=mask.device) + q_offset
    slots = torch.stack([query, torch.zeros_like(query) + kv_offset], dim=-1).expand(len(mask), 1, -1, -1)
    dtype = torch.int64 if mask.dtype is torch.bool else torch.int32
    return torch.cat([mask.to(dtype), slots.to(dtype)], dim=-1)


def without_slots(mask: Tensor | None, rows: int, keys: int) -> tuple[Tensor | None, tuple[int, int]]:
    """The mask that travels as ever, and the positions of the first query and the first key in the sequence.

    Raises:
        ValueError: a mask from elsewhere (of four dimensions, given to the model) while keys come from a cache.
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
    """Transformers' `sdpa_mask`, but never None."""
    mask = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})
    assert mask is not None
    return mask


def allowed_edges(mask: Tensor | None, rows: int, keys: int, device: torch.device) -> EdgeMask:
    """The edges that each query may use, from the mask that arrived; causal where none was given.

    Raises:
        ValueError: an additive mask, which could carry a bias that gates would silently ignore.
    """
    if mask is None:
        return EdgeMask.causal(rows, keys, device)
    if mask.dtype is torch.int32:
        start, stop = mask[:, 0].clamp_max(keys).unbind(-1)
        return EdgeMask(start, stop, keys)
    if mask.dtype is not torch.bool:
        raise ValueError("gated attention takes a boolean attention mask (True where a key is visible), not a bias")
    return EdgeMask.from_dense(mask[..., :keys])


def _runs(allowed: Bool[Tensor, "#batch query key"]) -> tuple[Tensor, Tensor, bool]:
    """First and one past the last key that each query sees, and whether these are all in between."""
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
