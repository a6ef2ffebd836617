"""A model's forward pass in pieces, with access to every reader's input and every writer's output.

The pieces are the model's own modules, called one by one. Nothing in the model is replaced, and the model is unchanged
when the context ends. A dense model is treated as a gated one with all gates open.
"""

from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_sparse.anatomy.calls import TAPPED, AttentionCalls, Projected, Tapped, first_input
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
from lit_sparse.attention.open_edges import layer_open_edges
from lit_sparse.common.modes import evaluating

TOLERANCE = 1e-3
"""Largest allowed distance of the pieces' logits from the model's, relative to their spread. Rounding in float32
through 30 layers is ten times below it, a forgotten norm or multiplier a hundred times above."""


class Stack:
    """Pieces of a model's forward pass, used as a context: `with Stack(model) as stack`.

    Prompts of one call have the same length and no padding. Gates are deterministic.

    Args:
        model: any causal language model of transformers that `sparsify` takes, with gates or without.

    Attributes:
        takes_positions: True if positions can be run without those before them (`project_last`).

    Raises:
        ValueError: on entering, if the layers of the model's family are not understood, so that the reassembled
            pieces do not give the model's own logits.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self._exit = ExitStack()
        self._calls = AttentionCalls(model)
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
                set_implementation(model, TAPPED)
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
                self.takes_positions = self._takes_positions(ids)
                return
        raise ValueError(
            f"model family {self.model.config.model_type!r} is not understood well enough for circuits: its layers, "
            f"put together from their parts, give logits that are off by {min(errors):.1e} of their spread"
        )

    def _takes_positions(self, ids: Int[Tensor, "1 time"]) -> bool:
        """True if `project_last` gives the same as `project`."""
        residual = self.embed(ids)
        for layer in range(len(self.anatomy.layers)):
            whole = self.project(layer, residual)
            earlier = Projected(*(part[:, :, :5] for part in whole))
            try:
                last = self.project_last(layer, residual[:, 5:], earlier)
            except (TypeError, ValueError):  # the model's forward takes no position_ids
                return False
            pairs = ((last.query, whole.query[:, :, 5:]), (last.key, whole.key), (last.value, whole.value))
            if any((a - b).abs().max() > TOLERANCE * b.std() for a, b in pairs):
                return False
            residual = self.layer(layer, residual)
        return True

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""
        return int(self.anatomy.head.weight.shape[0])  # type: ignore[index]

    # --- the pieces, in the order in which they run -------------------------------------------------------------

    def embed(self, ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time model"]:
        """The residual stream before the first layer."""
        self._calls.note(self._attentions(), ids)
        return first_input(self.model, self.anatomy.layers[0].module, ids)

    def project(self, layer: int, residual: Float[Tensor, "batch time model"]) -> Projected:
        """Queries, keys and values that a layer reads from a residual stream."""
        tapped = self._tapped(layer, residual)
        self._attention_arguments[layer, residual.shape[1]] = tapped.mask, tapped.keywords
        return tapped.projected

    def project_last(self, layer: int, residual: Float[Tensor, "batch last model"], earlier: Projected) -> Projected:
        """Queries of the last positions, with keys and values of all. It needs `takes_positions`.

        Args:
            earlier: projections of the positions before, of the same batch. `project` has been called with the whole
                length.
        """
        first = earlier.key.shape[2]
        ids = torch.zeros(1, residual.shape[1], dtype=torch.int64, device=residual.device)
        self._calls.note(self._attentions(), ids, first)
        last = self._tapped(layer, residual, first).projected
        keys, values = (torch.cat(parts, dim=2) for parts in ((earlier.key, last.key), (earlier.value, last.value)))
        return Projected(last.query, keys, values)

    def _tapped(self, layer: int, residual: Float[Tensor, "batch time model"], first: int = 0) -> Tapped:
        parts = self.anatomy.layers[layer]
        return self._calls.tapped(layer, parts.attention, parts.before_attention(residual), first)

    def _attentions(self) -> list[nn.Module]:
        return [layer.attention for layer in self.anatomy.layers]

    def attend(self, layer: int, projected: Projected) -> Float[Tensor, "batch time head value_dim"]:
        """The heads' outputs before the output projection."""
        mask, keywords = self._attention_arguments[layer, projected.query.shape[2]]
        attention = self.anatomy.layers[layer].attention
        return gated_attention_forward(attention, *projected, mask, **keywords)[0]

    @torch.no_grad()
    def open_edges(self, layer: int, projected: Projected) -> OpenEdges:
        """Attention edges that a layer's gates leave open. In a dense model these are all that the mask allows."""
        mask, keywords = self._attention_arguments[layer, projected.query.shape[2]]
        attention = self.anatomy.layers[layer].attention
        allowed, scaling = attention_problem(attention, projected.query, projected.key, mask, keywords)
        softcap = keywords.get("softcap")
        query, key = projected.query, projected.key
        gate, value = attention.edge_gate, projected.value
        return layer_open_edges(query, key, value, allowed, gate, scaling=scaling, softcap=softcap)

    def edge_weights(self, layer: int, projected: Projected) -> Float[Tensor, "batch head query key"]:
        """The weight of every attention edge of a layer, as a matrix: see `softmax_and_edge_weights`."""
        mask, keywords = self._attention_arguments[layer, projected.key.shape[2]]
        attention = self.anatomy.layers[layer].attention
        allowed, scaling = attention_problem(attention, projected.key, projected.key, mask, keywords)
        allowed = allowed.last(projected.query.shape[2])
        softcap = keywords.get("softcap")
        gate = attention.edge_gate
        return softmax_and_edge_weights(*projected, allowed, gate, scaling=scaling, softcap=softcap)[1]

    def allowed_edges(self, layer: int, projected: Projected) -> int:
        """Number of edges that a layer's mask allows in one prompt, over all heads."""
        mask, keywords = self._attention_arguments[layer, projected.query.shape[2]]
        attention = self.anatomy.layers[layer].attention
        edges, _ = attention_problem(attention, projected.query, projected.key, mask, keywords)
        return int(edges.allowed()[0].sum()) * projected.query.shape[1]

    def write(
        self, layer: int, heads: Float[Tensor, "batch time head value_dim"]
    ) -> tuple[Float[Tensor, "head batch time model"], Float[Tensor, "batch time model"]]:
        """Additions of each head to the residual stream, and of the whole attention (with its bias).

        A norm after the attention has the scale that it has for the sum.
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
        """Addition of the attention beside its heads (none in families that have a norm after it)."""
        bias = self.anatomy.layers[layer].output.bias
        return 0.0 if bias is None else bias  # type: ignore[return-value]

    def mlp(self, layer: int, residual: Float[Tensor, "batch time model"]) -> Float[Tensor, "batch time model"]:
        """Addition of a layer's MLP to the residual stream that it reads."""
        parts = self.anatomy.layers[layer]
        output = parts.mlp(parts.before_mlp(residual))
        added: Tensor = parts.after_mlp(output[0] if isinstance(output, tuple) else output)
        return added

    def logits(self, residual: Float[Tensor, "batch time model"]) -> Float[Tensor, "batch token"]:
        """Logits of the token after the last one, in float32 or more."""
        logits = self.anatomy.logits(residual[:, -1])
        return logits.to(accumulation_dtype(logits.dtype))

    def layer(
        self, layer: int, residual: Float[Tensor, "batch time model"], projected: Projected | None = None
    ) -> Float[Tensor, "batch time model"]:
        """The residual stream after a layer.

        Args:
            projected: the result of `project`, if it is known already.
        """
        heads = self.attend(layer, self.project(layer, residual) if projected is None else projected)
        attention = self.anatomy.layers[layer].after_attention(self.anatomy.layers[layer].output(heads.flatten(2)))
        return self.finish_layer(layer, residual, attention)

    def finish_layer(
        self, layer: int, residual: Float[Tensor, "batch time model"], attention: Float[Tensor, "batch time model"]
    ) -> Float[Tensor, "batch time model"]:
        """The residual stream after a layer whose attention adds `attention`."""
        after = residual + attention
        return after + self.mlp(layer, residual if self.anatomy.layers[layer].parallel else after)
