"""Calls of a model's attention: the arguments of each layer, and the arguments of its attention function."""

from contextlib import ExitStack, suppress
from typing import Any, NamedTuple, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lit_sparse.attention.bridge import IMPLEMENTATION, set_implementation
from lit_sparse.attention.masks import mask_for_transformers

TAPPED = "lit_sparse_tapped"
"""Name of an attention implementation that only reports its arguments."""


class Projected(NamedTuple):
    """Queries, keys and values of one layer's attention, after rotary embeddings and query/key norms. Queries may
    cover only the last positions; in general they cover all."""

    query: Float[Tensor, "batch head query dim"]
    key: Float[Tensor, "batch kv_head key dim"]
    value: Float[Tensor, "batch kv_head key value_dim"]


class Tapped(Exception):
    """Holds the arguments that a layer gave to its attention function."""

    def __init__(self, projected: Projected, mask: Tensor | None, keywords: dict[str, Any]):
        self.projected, self.mask, self.keywords = projected, mask, keywords


class _Seen(Exception):
    """Ends a forward pass as soon as its purpose is fulfilled."""


def _tap(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keywords: Any
) -> NoReturn:
    raise Tapped(Projected(query, key, value), attention_mask, keywords)


AttentionInterface.register(TAPPED, _tap)
AttentionMaskInterface.register(TAPPED, mask_for_transformers)


def first_input(model: PreTrainedModel, module: nn.Module, ids: Int[Tensor, "batch time"]) -> Tensor:
    """Hidden states of the first call of a module in a forward pass, which ends there."""
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _Seen

    with module.register_forward_pre_hook(look, with_kwargs=True), suppress(_Seen):
        model(input_ids=ids, use_cache=False)
    return seen[0]


class AttentionCalls:
    """Arguments of each layer's attention, recorded once for every first position and length. The arguments of one
    sequence fit any batch of sequences without padding."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self._noted: dict[tuple[int, int], list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}

    def note(self, attentions: list[nn.Module], ids: Int[Tensor, "batch time"], first: int = 0) -> None:
        """Records the arguments for the length of `ids`, unless they are known.

        Args:
            first: the position of the first token.
        """
        length = ids.shape[1]
        if (first, length) in self._noted:
            return
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))

        places = torch.arange(first, first + length, device=ids.device)[None]
        with ExitStack() as hooks:
            hooks.callback(set_implementation, self.model, TAPPED)
            set_implementation(self.model, IMPLEMENTATION)
            for attention in attentions:
                hooks.enter_context(attention.register_forward_pre_hook(note, with_kwargs=True))
            with torch.no_grad():
                self.model(input_ids=ids[:1], use_cache=False, **({"position_ids": places} if first else {}))
        self._noted[first, length] = calls

    def tapped(
        self, layer: int, attention: nn.Module, hidden: Float[Tensor, "batch time model"], first: int = 0
    ) -> Tapped:
        """Arguments of a layer's attention function when the layer reads `hidden` instead of the recorded states."""
        args, kwargs = self._noted[first, hidden.shape[1]][layer]
        if args:
            args = (hidden, *args[1:])
        else:
            kwargs = {**kwargs, "hidden_states": hidden}
        try:
            attention(*args, **kwargs)
        except Tapped as tapped:
            return tapped
        raise AssertionError("the attention did not call its attention function")
