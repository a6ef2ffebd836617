"""Inputs and outputs of a model's MLPs, captured or replaced in any model that `lit_sparse.anatomy` understands.

Inputs are those of the MLP itself (after the norm and its weight). Outputs are what is added to the residual stream
(after the norm that some families put behind the MLP).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_sparse.anatomy.parts import Anatomy, LayerParts
from lit_sparse.attention import attention_modules, desparsify, sparsify

Batch = dict[str, Tensor]


class Activations(NamedTuple):
    """MLP inputs and outputs of all layers."""

    inputs: Float[Tensor, "layer *batch model"]
    outputs: Float[Tensor, "layer *batch model"]


class Notes(NamedTuple):
    """MLP inputs and outputs of one pass of the model, as one tensor per layer."""

    inputs: list[Tensor]
    outputs: list[Tensor]

    def activations(self, shape: Sequence[int]) -> Activations:
        """The stacked layers, for tokens of shape (B, T)."""
        return Activations(*(torch.stack([part.view(*shape, -1) for part in parts]) for parts in self))


class MLPs:
    """The MLPs of a dense or sparse model.

    Args:
        model: a model in evaluation mode, so that its gates are deterministic. It is not changed.

    Raises:
        ValueError: the layers of the model's family are not understood.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        anatomy = _anatomy(model)
        self._ends = [_ends(layer) for layer in anatomy.layers]

    def __len__(self) -> int:
        return len(self._ends)

    @torch.no_grad()
    def capture(self, batch: Batch) -> Activations:
        """Inputs and outputs (L, B, T, D) on a batch of a data module. The output head is not run."""
        with self.noted() as notes:
            _run(self.model.base_model, batch)
        return notes.activations(batch["input_ids"].shape)

    @contextmanager
    def noted(self) -> Iterator["Notes"]:
        """Context that keeps the inputs and outputs of one pass."""
        notes = Notes([], [])
        with ExitStack() as hooks:
            for first, last in self._ends:
                hooks.enter_context(first.register_forward_pre_hook(_noting(notes.inputs), with_kwargs=True))
                hooks.enter_context(last.register_forward_hook(_noting_output(notes.outputs)))
            yield notes

    @contextmanager
    def replaced(self, output: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
        """Context in which the MLP of layer l adds `output(l, its input)` to the residual stream instead of its own
        output. Layers call `output` in the order in which they run."""
        with ExitStack() as hooks:
            for layer, (first, last) in enumerate(self._ends):
                seen: list[Tensor] = []
                hooks.enter_context(first.register_forward_pre_hook(_noting(seen), with_kwargs=True))
                hooks.enter_context(last.register_forward_hook(_replacing(layer, seen, output)))
            yield

    def logits(self, batch: Batch) -> Float[Tensor, "batch time token"]:
        """The model's logits on a batch of a data module."""
        logits: Tensor = _run(self.model, batch).logits
        return logits


def _run(model: Any, batch: Batch) -> Any:
    return model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)


def _anatomy(model: PreTrainedModel) -> Anatomy:
    if attention_modules(model):
        return Anatomy.of(model)
    sparsify(model, layers=lambda layer: False)  # this finds the layers; the anatomy stays valid without gates
    try:
        return Anatomy.of(model)
    finally:
        desparsify(model)


def _ends(layer: LayerParts) -> tuple[nn.Module, nn.Module]:
    """The modules whose input is the MLP's, and whose output is what is added to the residual stream."""
    mlp: Any = layer.mlp
    parts = (mlp[0], mlp[-1]) if isinstance(mlp, nn.Sequential) else (mlp, mlp)  # opt: loose layers
    return parts[0], parts[1] if isinstance(layer.after_mlp, nn.Identity) else layer.after_mlp


def _noting(seen: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    return hook


def _noting_output(seen: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    return hook


def _replacing(layer: int, seen: list[Tensor], output: Callable[[int, Tensor], Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], old: Any) -> Any:
        own = old[0] if isinstance(old, tuple) else old
        new = output(layer, seen.pop()).to(own.dtype)
        return (new, *old[1:]) if isinstance(old, tuple) else new

    return hook
