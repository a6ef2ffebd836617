"""The bridge to transformers: gates in any causal model whose family uses the attention interface.

`sparsify` puts a `Gate` named `edge_gate` on every attention module and sets the attention function registered
here; `desparsify` removes both again. Nothing is patched process-wide: the registration only adds names, and
models that were not sparsified never run this code.

The attention function returns per-head edge counts in the slot where transformers expects attention weights, so
`model(..., output_attentions=True).attentions` holds one (B, H, 3) tensor per layer (see `GatedAttention.edges`),
also under non-reentrant activation checkpointing.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lit_sparse.attention.backends import resolve
from lit_sparse.attention.gates import Gate, GateConfig, build_gate
from lit_sparse.attention.guard import DenseAttentionError, Watch
from lit_sparse.attention.interface import Backend, Case
from lit_sparse.attention.masks import EdgeMask, allowed_edges, mask_for_transformers
from lit_sparse.attention.noise import draw_seeds
from lit_sparse.attention.probe import AttentionCall, probe_attention
from lit_sparse.common.late import lent

IMPLEMENTATION = "lit_sparse"

# What `sparsify` puts on an attention module.
_ATTRIBUTES = (
    "edge_gate", "edge_backend", "edge_separates_documents", "edge_dense_implementation", "edge_seeds", "edge_ran",
    "edge_watch",
)  # fmt: skip

# Keywords that families pass to the attention function and that change nothing here: the mask already includes
# windows and padding, and caches were applied before.
_IGNORED = frozenset(
    {
        "position_ids",
        "cache_position",
        "use_cache",
        "past_key_values",
        "past_key_value",
        "sliding_window",
        "is_causal",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "logits_to_keep",
        "num_items_in_batch",
        "labels",
        "inputs_embeds",
    }
)


def gated_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The function registered with transformers' `AttentionInterface` (shapes as there).

    Raises:
        ValueError: a keyword has a meaning that this operator does not implement, or a mask is not boolean.
        DenseAttentionError: the model has no gates and was made from the configuration of a model with gates.
    """
    if not hasattr(module, "edge_gate"):
        raise DenseAttentionError(
            "this model's configuration asks for lit_sparse's attention, and it has no gates: it was built from a "
            "sparse model's config. Load sparse models with lit_sparse.from_pretrained(name), or call "
            "lit_sparse.sparsify(model) on a dense one"
        )
    refuse_unknown_keywords(kwargs)
    gate: Gate = module.edge_gate
    module.edge_ran = True
    mask, scaling = attention_problem(module, query, key, attention_mask, {"scaling": scaling, **kwargs})
    dim = max(query.shape[-1], value.shape[-1])
    case = Case(gate, softcap, dropout, query.device, mask.holes is not None, value.dtype, dim)
    operator = resolve(module.edge_backend, case)
    seeds = None
    if gate.training:
        # Training sets them, so that its gates do not depend on the number of ranks.
        given = module.edge_seeds
        seeds = draw_seeds(query.shape[0], query.device) if given is None else given
    # Cached or autocast inputs may differ in dtype: all take the values' dtype.
    query, key, value = query.to(value.dtype), key.to(value.dtype), gate.deviation(value)
    output, edges = operator(
        query, key, value, mask, gate, scaling=scaling, softcap=softcap, dropout=dropout, seeds=seeds
    )
    return gate.restored(output), edges


def refuse_unknown_keywords(keywords: Mapping[str, Any]) -> None:
    """Refuses keywords of the attention function that are not implemented.

    Raises:
        ValueError: a keyword other than dropout, scaling and softcap would change what attention computes.
    """
    for name, argument in keywords.items():
        if argument is not None and name not in _IGNORED:
            raise ValueError(f"gated attention does not implement the keyword {name!r} that this model passes")


def attention_problem(
    module: Any, query: Tensor, key: Tensor, attention_mask: Tensor | None, keywords: Mapping[str, Any]
) -> tuple[EdgeMask, float]:
    """Edges that a layer allows and the scale of its logits, from the arguments of transformers' call."""
    rows, keys = query.shape[2], key.shape[2]
    mask = allowed_edges(attention_mask, rows, keys, query.device)
    positions = keywords.get("position_ids")
    if module.edge_separates_documents and positions is not None and rows == keys > 1:
        mask = mask.within_documents(positions)
    scaling = keywords.get("scaling")
    return mask, query.shape[-1] ** -0.5 if scaling is None else scaling


AttentionInterface.register(IMPLEMENTATION, gated_attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION, mask_for_transformers)


def sparsify(
    model: PreTrainedModel,
    gate: GateConfig | Mapping[str, Any] | None = None,
    *,
    backend: Backend | str = Backend.AUTO,
    layers: Callable[[int], bool] = lambda index: True,
) -> PreTrainedModel:
    """Gives every attention layer of a loaded model sparse gated attention, in place, and returns the model.

    The model's `save_pretrained` then writes a sparse model folder (`lit_sparse.models.sparse_folder`), its
    `push_to_hub` pushes one (`lit_sparse.models.push`), and a forward pass in which something switched the gates off
    raises `DenseAttentionError`.

    In place of attention weights, `model(..., output_attentions=True).attentions` then holds counts of edges, one
    (B, H, 3) tensor per layer (expected open, open, allowed; see `edge_counts`): a sparse model never forms the
    (B, H, T, S) matrices. For short inputs `lit_sparse.attention_patterns` gives these, for any model.

    Args:
        model: a causal language model from transformers.
        gate: description of the gates: `Contribution(...)` or another family's, or a mapping of `family` and that
            family's options. Default: `Probability()`.
        backend: the operator (see `Backend`).
        layers: True for the layers (in the order in which they run) that may close edges. The others keep all edges
            open.

    Raises:
        ValueError: the family does not use transformers' attention interface (bloom, falcon with ALiBi, mpt, ...), or
            its attention needs what the gates do not implement (attention sinks); the model is sparsified already; or
            a key, family or backend is unknown. The model is then unchanged.
    """
    config = GateConfig.of(gate)
    backend = Backend(backend) if backend in list(Backend) else backend
    if attention_modules(model):
        raise ValueError("this model is sparsified already; call lit_sparse.desparsify(model) first")
    calls = probe_attention(model)
    for call in calls:
        _refuse_unknown(model, call)
    gates = [build_gate(config, call.heads) for call in calls]
    for call, built in zip(calls, gates, strict=True):
        resolve(backend, Case(built, softcap=1.0 if "softcap" in call.keywords else None))
    for index, (call, built) in enumerate(zip(calls, gates, strict=True)):
        if not layers(index):
            built.keep_open()
        elif config.centered:
            built.add_center(*call.value_shape)
        module: Any = call.module
        module.edge_gate = built.to(call.device).train(module.training)
        module.edge_backend = backend
        module.edge_separates_documents = not call.mask_separates_documents
        module.edge_dense_implementation = model.config._attn_implementation
        module.edge_seeds = None
        module.edge_ran = False
    watch = Watch(attention_modules(model), IMPLEMENTATION)
    for module in watch.modules:
        module.edge_watch = watch
    watch.attach(model, model.base_model)
    _claim(model)
    set_implementation(model, IMPLEMENTATION)
    return model


def desparsify(model: PreTrainedModel) -> PreTrainedModel:
    """Removes the gates, in place. Afterwards the model computes exactly what it computed before `sparsify`.

    Raises:
        ValueError: the model has no gates.
        RuntimeError: the model is being edited (`lit_sparse.edit`).
    """
    modules = attention_modules(model)
    if not modules:
        raise ValueError("this model has no gates: it was not sparsified")
    if hasattr(modules[0], "edge_edits"):
        raise RuntimeError("this model is being edited: leave lit_sparse.edit before removing its gates")
    set_implementation(model, modules[0].edge_dense_implementation)
    modules[0].edge_watch.detach()
    for module in modules:
        for name in _ATTRIBUTES:
            delattr(module, name)
    _release(model)
    return model


@contextmanager
def dense(model: nn.Module) -> Iterator[nn.Module]:
    """Context in which the model attends densely, as the base model would with the present weights."""
    set_implementation(model, attention_modules(model)[0].edge_dense_implementation)
    try:
        yield model
    finally:
        set_implementation(model, IMPLEMENTATION)


def attention_modules(model: nn.Module) -> list[Any]:
    """The attention modules that have gates, in the order in which they run."""
    # Modules that another tool wraps around these may have the gate as an attribute too.
    return [module for module in model.modules() if isinstance(module._modules.get("edge_gate"), Gate)]


def gates_of(model: nn.Module) -> list[Gate]:
    """The gates of each layer, in the order in which the layers run."""
    return [module.edge_gate for module in attention_modules(model)]


def separates_documents_only_when_gated(model: nn.Module) -> bool:
    """True if the family's own dense attention mixes packed documents (OPT), so that it is no fair base."""
    return any(module.edge_separates_documents for module in attention_modules(model))


def set_implementation(model: nn.Module, implementation: str) -> None:
    """Sets a registered attention implementation in a model, also in one that peft has wrapped."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    base.set_attn_implementation(implementation)
    attention_modules(model)[0].edge_watch.paused = implementation != IMPLEMENTATION


@contextmanager
def attending(model: nn.Module, name: str, attend: Callable[..., Any]) -> Iterator[None]:
    """Context in which a sparsified model's layers attend by another function.

    Args:
        name: name of the function, for transformers.
        attend: the function, with the signature of `gated_attention_forward`.
    """
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, mask_for_transformers)
    try:
        set_implementation(model, name)
        yield
    finally:
        set_implementation(model, IMPLEMENTATION)


def base_name_of(model: nn.Module) -> str:
    """The name or path of the dense model that was sparsified; empty if it had none."""
    return getattr(model, "edge_base_name", "")


def _claim(model: PreTrainedModel) -> None:
    """Sets the attributes by which other tools save and name the model, so that they neither lose the gates nor take it
    for its base."""
    claimed: Any = model
    claimed.edge_base_name = model.name_or_path
    claimed.name_or_path = f"{model.name_or_path} (sparsified)"
    claim_saving(model)


def claim_saving(model: nn.Module) -> None:
    """Makes the model's `save_pretrained` write a sparse model folder, and its `push_to_hub` push one."""
    claimed: Any = model
    claimed.save_pretrained = partial(_save, model)
    claimed.push_to_hub = partial(_push, model)


def _save(model: nn.Module, *args: Any, **options: Any) -> None:
    lent("save_sparse")(model, *args, **options)


def _push(model: nn.Module, *args: Any, **options: Any) -> str:
    address: str = lent("push_sparse")(model, *args, **options)
    return address


def _release(model: PreTrainedModel) -> None:
    model.name_or_path = base_name_of(model)
    for name in ("edge_base_name", "save_pretrained", "push_to_hub"):
        delattr(model, name)


def _refuse_unknown(model: PreTrainedModel, call: AttentionCall) -> None:
    if call.mask_is_additive:
        raise ValueError(
            f"{model.config.model_type} adds a bias to its attention logits through a mask that is not boolean, which "
            "gated attention does not implement"
        )
    unknown = [name for name in call.keywords if name not in _IGNORED | {"dropout", "scaling", "softcap"}]
    if "s_aux" in unknown:
        raise ValueError(
            f"{model.config.model_type} uses attention sinks (s_aux), which change the normalisation that gates are "
            "defined on; lit_sparse does not support them"
        )
    if unknown:
        raise ValueError(
            f"{model.config.model_type} passes {', '.join(unknown)} to its attention, which gated attention does not "
            "implement"
        )
