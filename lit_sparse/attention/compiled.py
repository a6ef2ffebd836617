"""torch.compile of a model's layers, part by part: attention, MLP and norms of each layer separately.

All layers share the code of their parts, so little is compiled. Transformers' hooks, which cannot be traced, stay
between the parts.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lit_sparse.attention.bridge import attention_modules

_VARIANTS = 32
"""Variants of one part's code: base and sparse, first and other layers, shapes. torch.compile's limit of 8 counts all
layers."""


class CompiledLayers:
    """The compiled parts of a sparsified model's layers, which run between `attach()` and `detach()`.

    Args:
        model: the model, whose modules the compiled parts keep.
        backend: backend of torch.compile.
    """

    def __init__(self, model: nn.Module, backend: str = "inductor"):
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
        self._embeddings: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
        self._hook: RemovableHandle | None = None
        attention = {id(module) for module in attention_modules(model)}
        layers = [module for module in model.modules() if any(id(child) in attention for child in module.children())]
        parts = [part for layer in layers for part in layer.children() if next(part.parameters(), None) is not None]
        self._compiled: list[tuple[nn.Module, Callable[..., Any]]] = [
            (part, torch.compile(part.forward, dynamic=False, backend=backend)) for part in parts
        ]

    def attach(self) -> None:
        """Runs the model's layers compiled from now on. A backward pass that recomputes layers needs this too."""
        for part, forward in self._compiled:
            part.__dict__["forward"] = forward
        self._hook = self._embeddings.register_forward_hook(_differentiable)

    def detach(self) -> None:
        """Runs the model's layers without compilation again."""
        for part, _ in self._compiled:
            part.__dict__.pop("forward", None)
        if self._hook is not None:
            self._hook.remove()


def _differentiable(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Makes the output of frozen embeddings need a gradient. Otherwise the first layer would be compiled separately."""
    return output.requires_grad_() if torch.is_grad_enabled() else output
