"""Memory that a forward pass keeps for the backward pass, found by running the model on tensors without data.

The model's own code runs under `FakeTensorMode` (meta tensors that know a device), so the result holds for every
family, precision and set of trained weights. Each storage that autograd saves is counted once.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_sparse.attention import operator  # noqa: F401 - registers torch.ops.lit_sparse.gated_attention


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch, between forward and backward, without the logits.

    kept: all saved tensors, without checkpointing.
    gated_attention: the part of `kept` that the gated-attention operator saves: q, k, v, its output, row statistics.
    weight_copies: low-precision copies of weights that autocast makes (not among `kept`). Without checkpointing all
        are alive at the end of the forward pass.
    weight_copies_cached: the part of `weight_copies` for trained weights, which autocast's cache keeps with
        checkpointing too.
    checkpointed: with checkpointing, the layers' inputs and the tensors outside of layers.
    one_layer: tensors of the largest layer while it is recomputed, with the copies of its weights.
    """

    kept: float
    gated_attention: float
    weight_copies: float
    weight_copies_cached: float
    checkpointed: float
    one_layer: float

    def held(self, checkpointing: bool) -> float:
        """Bytes at the end of the forward pass."""
        return self.checkpointed + self.weight_copies_cached if checkpointing else self.kept + self.weight_copies


class _Saved:
    """One storage that autograd keeps; the tensor is held so that its storage's identity is not used again."""

    def __init__(self, tensor: Tensor, layer: int | None):
        self.tensor, self.layer, self.bytes = tensor, layer, tensor.untyped_storage().nbytes()


def trace_activations(
    model: nn.Module,
    batch: int,
    length: int,
    *,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
) -> Activations:
    """Activations that one micro-batch keeps. The model's weights become fake tensors, so it cannot be used afterwards.

    Args:
        model: a sparsified transformers model, on the meta device, with `requires_grad` as in training.
        batch, length: sequences and tokens of each in a micro-batch.
        dtype: dtype of the weights.
        autocast: dtype of matrix products under autocast; None without autocast.

    Raises:
        ValueError: the forward pass depends on values, which fake tensors lack, or PyTorch does not know the shapes of
            an operation (grouped products of experts, except in bfloat16).
    """
    model.to(dtype).train()
    logger = logging.getLogger(FakeTensorMode.__module__)  # it prints tracebacks of what becomes a ValueError here
    level = logger.level
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        ids = torch.zeros(batch, length, dtype=torch.long)
        positions = torch.arange(length).expand(batch, -1)
        mask = torch.zeros(1, 1, length, 2, dtype=torch.int32)  # intervals, as `attention.masks` makes them
        own = {_identity(tensor) for tensor in [*model.parameters(), *model.buffers()]}
        trained = {_identity(parameter) for parameter in model.parameters() if parameter.requires_grad}
        saved: dict[int, _Saved] = {}
        layers = _Layers(model)
        watch = _Watch(own)

        def pack(tensor: Tensor) -> Tensor:
            if _identity(tensor) not in own:
                saved.setdefault(_identity(tensor), _Saved(tensor, layers.current))
            return tensor

        mixed = torch.autocast("cpu", dtype=autocast) if autocast else contextlib.nullcontext()
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        logger.setLevel(logging.CRITICAL)
        try:
            with layers.watched(), watch, hooks, mixed:
                outputs = model(  # the same call as in training, without losses
                    input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False, output_attentions=True
                )
        except Exception as error:  # fake tensors raise many kinds of errors where a value is asked for
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"cannot trace this model's activations in {dtype}: {reason}. Experts can be traced only where layers' "
                "weights are bfloat16: set precision bf16-true, or use DeepSpeed or FSDP2 with bf16-mixed"
            ) from error
        finally:
            logger.setLevel(level)
        saved.pop(_identity(outputs.logits), None)
        return _count(saved, layers, watch, trained)


def _count(saved: dict[int, _Saved], layers: "_Layers", watch: "_Watch", trained: set[int]) -> Activations:
    copies = {key: watch.copies[key] for key in saved if key in watch.copies}
    plain = {key: item for key, item in saved.items() if key not in copies}
    inputs = {_identity(tensor): tensor for tensor in layers.inputs}
    per_layer = [0.0] * len(layers.modules)
    for key, item in saved.items():
        if item.layer is not None and key not in inputs:
            per_layer[item.layer] += item.bytes
    outside = sum(item.bytes for key, item in plain.items() if item.layer is None and key not in inputs)
    return Activations(
        kept=sum(item.bytes for item in plain.values()),
        gated_attention=sum(item.bytes for key, item in plain.items() if key in watch.attention),
        weight_copies=sum(saved[key].bytes for key in copies),
        weight_copies_cached=sum(saved[key].bytes for key, source in copies.items() if source in trained),
        checkpointed=outside + sum(tensor.untyped_storage().nbytes() for tensor in inputs.values()),
        one_layer=max(per_layer, default=0.0),
    )


class _Layers:
    """The checkpointable layer that runs now, and the hidden states that go into each."""

    def __init__(self, model: nn.Module):
        self.modules = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        self.current: int | None = None
        self.inputs: list[Tensor] = []

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        handles: list[Any] = []
        for index, module in enumerate(self.modules):
            handles.append(module.register_forward_pre_hook(self._enter(index), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, index: int) -> Any:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.current = index
            self.inputs.append(args[0] if args else kwargs["hidden_states"])

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.current = None


class _Watch(TorchDispatchMode):
    """Records the storages that go through the gated-attention operator, and those that are copies of weights."""

    def __init__(self, own: set[int]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.own = own
        self.attention: set[int] = set()
        self.copies: dict[int, int] = {}  # copy -> weight
        self._alive: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and _identity(args[0]) in self.own:
            self.copies[_identity(result)] = _identity(args[0])
            self._alive.append(result)
        elif func is torch.ops.lit_sparse.gated_attention.default:
            tensors = [tensor for tensor in (*args, *result) if isinstance(tensor, Tensor)]
            self.attention |= {_identity(tensor) for tensor in tensors} - self.own
            self._alive += tensors
        return result


def _identity(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
