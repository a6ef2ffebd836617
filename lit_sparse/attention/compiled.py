"""torch.compile of a model's layers, part by part: attention, MLP and norms of each layer on their own.

All layers share the code of their parts, so that little is compiled, and transformers' hooks, which cannot be traced,
stay between the parts.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lit_sparse.attention.bridge import attention_modules

_VARIANTS = 32
"""Of one part's code: base and sparse, first and other layers, shapes. torch.compile's limit of 8 counts all layers."""


class CompiledLayers:
    """The compiled parts of a sparsified model's layers; they run between `attach()` and `detach()`.

    Args:
        model: as it stays; compiled parts keep its modules.
        backend: torch.compile's.
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
        """From here on the model's layers run compiled; a backward pass that recomputes them needs them so, too."""
        for part, forward in self._compiled:
            part.__dict__["forward"] = forward
        self._hook = self._embeddings.register_forward_hook(_differentiable)

    def detach(self) -> None:
        """The model's layers run as they are written."""
        for part, _ in self._compiled:
            part.__dict__.pop("forward", None)
        if self._hook is not None:
            self._hook.remove()


def _differentiable(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Frozen embeddings' output as one that needs a gradient: else the first layer would be compiled by itself."""
    return output.requires_grad_() if torch.is_grad_enabled() else output
