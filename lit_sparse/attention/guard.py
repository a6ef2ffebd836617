"""Guard against dense attention in a sparsified model: a forward pass without the gates raises an error.

Transformers does not warn when attention becomes dense. This happens if somebody sets another implementation, if a
config is shared, or if a tool (such as TransformerLens' bridge) computes attention itself from the projections.
"""

import sys
from collections.abc import Iterable
from typing import Any

from torch import nn

_ADVICE = (
    "Its adapted weights would run with dense attention, which is not the model that was trained. Turn the gates on "
    'again with model.set_attn_implementation("lit_sparse"), or, if dense attention is meant, remove them with '
    "lit_sparse.desparsify(model)"
)


_REPLACED = (
    "something computed attention in their place (such as TransformerLens' TransformerBridge.boot_transformers, which "
    "replaces attention modules: lit_sparse.models.transformer_lens.transformer_bridge keeps them)"
)


class DenseAttentionError(RuntimeError):
    """A model with gates was about to run, or ran, without them."""


class Watch:
    """Checks every forward pass of a sparsified model, or of its base model alone, before and after it.

    Args:
        modules: the attention modules that have gates.
        implementation: the attention implementation that uses gates.
    """

    def __init__(self, modules: Iterable[Any], implementation: str):
        self.modules = list(modules)
        self.implementation = implementation
        self.paused = False
        """True while lit_sparse itself runs the model in another way (`dense`, calibration)."""
        self._handles: list[Any] = []
        self._places: list[tuple[nn.Module, str, nn.Module]] = []  # where the attention modules are: parent and name

    def attach(self, *models: nn.Module) -> None:
        """Watches each of these modules once. The first one contains all attention modules."""
        for parent in models[0].modules():
            self._places += [(parent, name, child) for name, child in parent.named_children() if child in self.modules]
        for model in {id(model): model for model in models}.values():
            self._handles += [
                model.register_forward_pre_hook(self.before),
                model.register_forward_hook(self.after, always_call=True),
            ]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def before(self, model: nn.Module, inputs: Any) -> None:
        """Checks a model before its forward pass.

        Raises:
            DenseAttentionError: a layer has another attention implementation.
        """
        if self.paused:
            return
        for module in self.modules:
            module.edge_ran = False
            config = getattr(module, "config", None)
            if config is not None and config._attn_implementation != self.implementation:
                raise DenseAttentionError(
                    f"this sparse model's attention implementation was changed to {config._attn_implementation!r}, "
                    f"which ignores its gates. {_ADVICE}"
                )

    def after(self, model: nn.Module, inputs: Any, output: Any) -> None:
        """Checks a model after its forward pass.

        Raises:
            DenseAttentionError: the gates of no layer ran, or in evaluation the gates of some layers did not run.
        """
        if self.paused:
            return
        if output is None:  # the pass ended in an error
            self._explain(sys.exception())
            return
        modules = self.modules[: _layers(model)]  # generation that exits early lowers this number for some passes
        ran = sum(module.edge_ran for module in modules)
        if ran == 0 or (ran < len(modules) and not model.training):  # training may drop layers
            raise DenseAttentionError(
                f"the gates of {len(modules) - ran} of {len(modules)} attention layers had no part in this "
                f"forward pass: {_REPLACED}. {_ADVICE}"
            )

    def _explain(self, error: BaseException | None) -> None:
        """Says of an error of something that replaced attention modules, and cannot read the gates' masks, what it
        comes from."""
        replaced = any(getattr(parent, name, None) is not module for parent, name, module in self._places)
        note = f"Before this error the gates of this sparse model had no part: {_REPLACED}."
        if error is None or not replaced or any(module.edge_ran for module in self.modules):
            return
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def _layers(model: Any) -> int | None:
    return getattr(model.config.get_text_config(), "num_hidden_layers", None)
