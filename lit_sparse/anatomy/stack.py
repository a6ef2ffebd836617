"""A model taken apart: the same computation as its forward pass, with every reader's input and writer's output at hand.

The pieces are the model's own modules, called one by one; nothing in the model is replaced, and when the context
ends it is as it was. A dense model is looked at as a gated one with all gates open.
"""

from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lit_sparse.anatomy.component_graph import ComponentGraph
from lit_sparse.anatomy.parts import Anatomy
from lit_sparse.attention import OpenEdges, attention_modules, desparsify, sparsify
from lit_sparse.attention.bridge import (
    IMPLEMENTATION,
    attention_problem,
    gated_attention_forward,
    set_implementation,
)
from lit_sparse.attention.edge_weights import softmax_and_edge_weights
from lit_sparse.attention.interface import accumulation_dtype
from lit_sparse.attention.masks import mask_for_transformers
from lit_sparse.attention.open_edges import layer_open_edges
from lit_sparse.common.modes import evaluating

_TAPPED = "lit_sparse_tapped"

TOLERANCE = 1e-3
"""How far the logits of the pieces may be from the model's, relative to their spread: rounding in float32 through 30
layers is ten times below, a forgotten norm or multiplier a hundred times above."""


class Projected(NamedTuple):
    """What one layer's attention works on, after rotary embeddings and query/key norms."""

    query: Float[Tensor, "batch head time dim"]
    key: Float[Tensor, "batch kv_head time dim"]
    value: Float[Tensor, "batch kv_head time value_dim"]


class _Tapped(Exception):
    """Carries what a layer handed to its attention function."""

    def __init__(self, projected: Projected, mask: Tensor | None, keywords: dict[str, Any]):
        self.projected, self.mask, self.keywords = projected, mask, keywords


class _Seen(Exception):
    """Ends a forward pass as soon as its purpose is fulfilled."""


def _tap(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keywords: Any
) -> NoReturn:
    raise _Tapped(Projected(query, key, value), attention_mask, keywords)


AttentionInterface.register(_TAPPED, _tap)
AttentionMaskInterface.register(_TAPPED, mask_for_transformers)


class Stack:
    """Use as a context: `with Stack(model) as stack`.

    Prompts of one call have the same length and no padding. Deterministic gates.

    Args:
        model: any causal language model of transformers that `sparsify` takes, with gates or without.

    Raises:
        ValueError: on entering, a family whose layers are not understood: put together again, the pieces must
            compute the model's own logits.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self._exit = ExitStack()
        self._calls: dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
        self._attention_arguments: dict[tuple[int, int], tuple[Tensor | None, dict[str, Any]]] = {}

    def __enter__(self) -> "Stack":
        model = self.model
        self._exit.enter_context(evaluating(model))
        try:
            if not attention_modules(model):
                sparsify(model, layers=lambda layer: False)
                self._exit.callback(desparsify, model)
            else:
                self._exit.callback(set_implementation, model, IMPLEMENTATION)
            self.anatomy = Anatomy.of(model)
            ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
            with torch.no_grad():
                expected = model(input_ids=ids, use_cache=False).logits[:, -1].float()
                set_implementation(model, _TAPPED)
                self._arrange(ids, expected)
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def _arrange(self, ids: Int[Tensor, "1 time"], expected: Float[Tensor, "1 token"]) -> None:
        errors = []
        for parallel in (False, True):
            self.anatomy = Anatomy(
                [layer.with_parallel(parallel) for layer in self.anatomy.layers],
                self.anatomy.final_norm,
                self.anatomy.head,
                self.anatomy.softcap,
            )
            residual = self.embed(ids)
            heads, kv_heads = [], []
            for layer in range(len(self.anatomy.layers)):
                projected = self.project(layer, residual)
                heads.append(projected.query.shape[1])
                kv_heads.append(projected.key.shape[1])
                residual = self.layer(layer, residual)
            error = (self.logits(residual) - expected).abs().max() / expected.std()
            errors.append(float(error))
            if error < TOLERANCE:
                self.graph = ComponentGraph(tuple(heads), tuple(kv_heads), (parallel,) * len(heads))
                return
        raise ValueError(
            f"model family {self.model.config.model_type!r} is not understood well enough for circuits: its layers, "
            f"put together from their parts, give logits that are off by {min(errors):.1e} of their spread"
        )

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""
        return int(self.anatomy.head.weight.shape[0])  # type: ignore[index]

    # --- the pieces, in the order in which they run -------------------------------------------------------------

    def embed(self, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time model"]:
        """The residual stream before the first layer."""
        seen: list[Tensor] = []

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])
            raise _Seen

        with self.anatomy.layers[0].module.register_forward_pre_hook(look, with_kwargs=True), suppress(_Seen):
            self.model(input_ids=ids, use_cache=False)
        self._note_calls(ids)
        return seen[0]

    def project(self, layer: int, residual: Float[Tensor, "batch time model"]) -> Projected:
        """Queries, keys and values that a layer reads from a residual stream."""
        tapped = self._tapped(layer, residual)
        self._attention_arguments[layer, residual.shape[1]] = tapped.mask, tapped.keywords
        return tapped.projected

    def attend(self, layer: int, projected: Projected) -> Float[Tensor, "batch time head value_dim"]:
        """The heads' outputs before the output projection."""
        mask, keywords = self._attention_arguments[layer, projected.query.shape[2]]
        attention = self.anatomy.layers[layer].attention
        return gated_attention_forward(attention, *projected, mask, **keywords)[0]

    @torch.no_grad()
    def open_edges(self, layer: int, projected: Projected) -> OpenEdges:
        """The attention edges that a layer's gates leave open: all that the mask allows in a dense model."""
        mask, keywords = self._attention_arguments[layer, projected.query.shape[2]]
        attention = self.anatomy.layers[layer].attention
        allowed, scaling = attention_problem(attention, projected.query, projected.key, mask, keywords)
        softcap = keywords.get("softcap")
        query, key = projected.query, projected.key
        gate, value = attention.edge_gate, projected.value
        return layer_open_edges(query, key, value, allowed, gate, scaling=scaling, softcap=softcap)

    def edge_weights(self, layer: int, projected: Projected) -> Float[Tensor, "batch head query key"]:
        """The weight of every attention edge of a layer, as a matrix: see `softmax_and_edge_weights`."""
        mask, keywords = self._attention_arguments[layer, projected.query.shape[2]]
        attention = self.anatomy.layers[layer].attention
        allowed, scaling = attention_problem(attention, projected.query, projected.key, mask, keywords)
        softcap = keywords.get("softcap")
        gate = attention.edge_gate
        return softmax_and_edge_weights(*projected, allowed, gate, scaling=scaling, softcap=softcap)[1]

    def allowed_edges(self, layer: int, projected: Projected) -> int:
        """Edges that a layer's mask allows in one prompt, over all heads."""
        mask, keywords = self._attention_arguments[layer, projected.query.shape[2]]
        attention = self.anatomy.layers[layer].attention
        edges, _ = attention_problem(attention, projected.query, projected.key, mask, keywords)
        return int(edges.allowed()[0].sum()) * projected.query.shape[1]

    def write(
        self, layer: int, heads: Float[Tensor, "batch time head value_dim"]
    ) -> tuple[Float[Tensor, "head batch time model"], Float[Tensor, "batch time model"]]:
        """What each head adds to the residual stream, and what the attention adds in all (with its bias).

        A norm after the attention is taken at the scale that it has for the sum.
        """
        parts = self.anatomy.layers[layer]
        weight = parts.output_weight().unflatten(1, (heads.shape[2], heads.shape[3]))
        each = torch.einsum("bthv,dhv->hbtd", heads, weight.to(heads.dtype))
        total = parts.output(heads.flatten(2))
        if isinstance(parts.after_attention, nn.Identity):
            return each, total
        normed = parts.after_attention(total)
        return each * torch.where(total == 0, 0, normed / total), normed

    def attention_bias(self, layer: int) -> Tensor | float:
        """What the attention adds beside its heads (nothing in families that have a norm after it)."""
        bias = self.anatomy.layers[layer].output.bias
        return 0.0 if bias is None else bias  # type: ignore[return-value]

    def mlp(self, layer: int, residual: Float[Tensor, "batch time model"]) -> Float[Tensor, "batch time model"]:
        """What a layer's MLP adds, from the residual stream that it reads."""
        parts = self.anatomy.layers[layer]
        output = parts.mlp(parts.before_mlp(residual))
        added: Tensor = parts.after_mlp(output[0] if isinstance(output, tuple) else output)
        return added

    def logits(self, residual: Float[Tensor, "batch time model"]) -> Float[Tensor, "batch token"]:
        """Logits of the token after the last one, in float32 or more."""
        logits = self.anatomy.logits(residual[:, -1])
        return logits.to(accumulation_dtype(logits.dtype))

    def layer(self, layer: int, residual: Float[Tensor, "batch time model"]) -> Float[Tensor, "batch time model"]:
        """The residual stream after a layer."""
        heads = self.attend(layer, self.project(layer, residual))
        attention = self.anatomy.layers[layer].after_attention(self.anatomy.layers[layer].output(heads.flatten(2)))
        return self.finish_layer(layer, residual, attention)

    def finish_layer(
        self, layer: int, residual: Float[Tensor, "batch time model"], attention: Float[Tensor, "batch time model"]
    ) -> Float[Tensor, "batch time model"]:
        """The residual stream after a layer whose attention adds `attention`."""
        after = residual + attention
        return after + self.mlp(layer, residual if self.anatomy.layers[layer].parallel else after)

    # --- how the model calls its attention ----------------------------------------------------------------------

    def _tapped(self, layer: int, residual: Float[Tensor, "batch time model"]) -> _Tapped:
        parts = self.anatomy.layers[layer]
        args, kwargs = self._calls[residual.shape[1]][layer]
        hidden = parts.before_attention(residual)
        if args:
            args = (hidden, *args[1:])
        else:
            kwargs = {**kwargs, "hidden_states": hidden}
        try:
            parts.attention(*args, **kwargs)
        except _Tapped as tapped:
            return tapped
        raise AssertionError("the attention did not call its attention function")

    def _note_calls(self, ids: Int[Tensor, "batch time"]) -> None:
        """Keeps, once for every length, the arguments that each layer's attention is called with. Those of one
        sequence fit any batch of sequences without padding."""
        if ids.shape[1] in self._calls:
            return
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))

        with ExitStack() as hooks:
            hooks.callback(set_implementation, self.model, _TAPPED)
            set_implementation(self.model, IMPLEMENTATION)
            for layer in self.anatomy.layers:
                hooks.enter_context(layer.attention.register_forward_pre_hook(note, with_kwargs=True))
            with torch.no_grad():
                self.model(input_ids=ids[:1], use_cache=False)
        self._calls[ids.shape[1]] = calls
