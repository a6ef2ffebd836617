"""Interventions on attention edges: a model runs with some edges closed, opened, or with another weight.

Everything after an edit, with the gates of later layers, is computed anew from the changed inputs.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lit_sparse.attention import bridge
from lit_sparse.attention.edge_edits import Edit, First
from lit_sparse.attention.edge_weights import Passed, softmax_and_edge_weights
from lit_sparse.attention.guard import DenseAttentionError, Watch
from lit_sparse.attention.interface import three_counts
from lit_sparse.attention.masks import mask_with_slots, without_slots
from lit_sparse.attention.probe import probe_attention

_EDITED = "lit_sparse_edited"


@contextmanager
def edit(model: PreTrainedModel, *, instead: Sequence[Passed] | None = None) -> Iterator[Edit]:
    """Context in which a model's edges can be edited: `with lit_sparse.edit(model) as edit: edit.close(layer=3)`.

    Forward passes and `generate` run with the edits made so far, the same for every sample of a batch. Afterwards the
    model is unchanged. Gates are deterministic, and gradients flow as in `softmax_and_edge_weights`. Layers with edits
    build matrices (batch, heads, queries, keys), so sequences should have at most a few thousand tokens. The counts of
    `output_attentions=True` are those of the edges that pass some of their value.

    Args:
        model: any causal language model that `sparsify` takes, in evaluation mode, with gates or without. A model
            without gates has all gates open inside the context.
        instead: for each layer, what closed edges pass. The edge (i, j) of a head passes the constant
            weights[i, j] values[j], and nothing at positions that these tensors do not have. With centered gates it is
            added to the center. The tensors' batch is 1, for every sample, or that of the passes. An example is
            `lit_sparse.circuits.attention_edges.passes.Passes.instead`. Default: a closed edge passes nothing.

    Raises:
        ValueError: `sparsify` refuses the model's family; or `instead` does not fit the model or, in a forward pass,
            the batch.
        RuntimeError: the model is being edited already, or its gates are switched off. In a forward pass: the model is
            in training mode, or something else has replaced its attention.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    with ExitStack() as stack:
        if not bridge.attention_modules(base):
            bridge.sparsify(base, layers=lambda layer: False)
            stack.callback(bridge.desparsify, base)
        modules = bridge.attention_modules(base)
        if hasattr(modules[0], "edge_edits"):
            raise RuntimeError("this model is being edited already: one context holds all of its edits")
        if base.config._attn_implementation != bridge.IMPLEMENTATION:
            raise RuntimeError(f"this model's gates are off: it attends by {base.config._attn_implementation!r}")
        stack.callback(bridge.set_implementation, base, bridge.IMPLEMENTATION)
        if instead is not None:
            modules[0].edge_watch.paused = True
            _check(instead, [(call.heads, call.value_shape[1]) for call in probe_attention(base)])
        made = Edit([module.edge_gate.num_heads for module in modules])
        stack.callback(made.end)
        for layer, module in enumerate(modules):
            module.edge_edits = _EditedLayer(made, layer, None if instead is None else instead[layer])
            stack.callback(delattr, module, "edge_edits")
        watch = _Watch(modules, _EDITED)
        watch.attach(base, base.base_model)
        stack.callback(watch.detach)
        bridge.set_implementation(base, _EDITED)
        yield made


class _EditedLayer(NamedTuple):
    """Edits of one attention module inside the context."""

    edit: Edit
    layer: int
    instead: Passed | None


class _Watch(Watch):
    """Refuses forward passes without the edits."""

    def before(self, model: Any, inputs: Any) -> None:
        """Checks a model before its forward pass.

        Raises:
            RuntimeError: another attention implementation was set.
        """
        try:
            super().before(model, inputs)
        except DenseAttentionError as error:
            raise RuntimeError(
                "inside lit_sparse.edit something set another attention implementation, which ignores the edits. "
                "Functions that do so themselves (Stack, open_edges, ...) must run outside of the context"
            ) from error


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it looks at values
def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keywords: Any
) -> tuple[Tensor, Tensor]:
    """`gated_attention_forward`, but with matrices in layers that have edits."""
    attention_mask, first = without_slots(attention_mask, query.shape[2], key.shape[2])
    edits: _EditedLayer | None = getattr(module, "edge_edits", None)  # None: a model made from this one's config
    if edits is not None and module.edge_gate.training:
        raise RuntimeError("edits are made in evaluation mode, where gates are not drawn: call model.eval() first")
    if edits is None or not edits.edit.concerns(edits.layer):
        return bridge.gated_attention_forward(module, query, key, value, attention_mask, **keywords)
    bridge.refuse_unknown_keywords({**keywords, "dropout": None, "scaling": None, "softcap": None})
    mask, scaling = bridge.attention_problem(module, query, key, attention_mask, keywords)
    softcap, gate, groups = keywords.get("softcap"), module.edge_gate, query.shape[1] // key.shape[1]
    module.edge_ran = True
    query, key = query.to(value.dtype), key.to(value.dtype)
    softmax, own = softmax_and_edge_weights(query, key, value, mask, gate, scaling=scaling, softcap=softcap)
    passes, closed = edits.edit.applied(edits.layer, own, softmax, mask.dense().expand_as(own), first)
    output = passes.to(value.dtype) @ gate.deviation(value).repeat_interleave(groups, dim=1)
    if edits.instead is not None:
        output = output + _passed(edits.instead, closed, first, like=output)
    is_open = passes != 0
    counts = three_counts(is_open.sum((-2, -1)).float(), is_open, mask)
    return gate.restored(output.transpose(1, 2).contiguous()), counts


AttentionInterface.register(_EDITED, _attend)
AttentionMaskInterface.register(_EDITED, mask_with_slots)


def _passed(
    instead: Passed, closed: Bool[Tensor, "batch head query key"], first: First, like: Tensor
) -> Float[Tensor, "batch head query value_dim"]:
    """Sum of what closed edges pass instead of their values, in the dtype and on the device of `like`."""
    batch, _, queries, keys = closed.shape
    some = slice(first[1], first[1] + keys)
    weights = instead.weights[:, :, first[0] : first[0] + queries, some].to(like)
    values = instead.values[:, :, some].to(like)
    if not {len(weights), len(values)} <= {1, batch}:
        raise ValueError(f"`instead` is of {max(len(weights), len(values))} samples, and the batch has {batch}")
    output = (weights * closed[:, :, : weights.shape[2], : weights.shape[3]]) @ values
    return nn.functional.pad(output, (0, 0, 0, queries - output.shape[2]))


def _check(instead: Sequence[Passed], expected: list[tuple[int, int]]) -> None:
    if len(instead) != len(expected):
        raise ValueError(f"`instead` has {len(instead)} layers, and the model has {len(expected)}")
    for layer, ((weights, values), (heads, dim)) in enumerate(zip(instead, expected, strict=True)):
        if weights.dim() != 4 or weights.shape[1] != heads or values.shape[1:] != (heads, weights.shape[3], dim):
            raise ValueError(
                f"`instead` of layer {layer} has weights {tuple(weights.shape)} and values {tuple(values.shape)}, not "
                f"(batch, {heads} heads, queries, keys) and (batch, {heads} heads, keys, {dim})"
            )
