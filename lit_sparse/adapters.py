"""Low-rank adapters through peft (extra `lora`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from transformers import PreTrainedModel

from lit_sparse.attention.bridge import IMPLEMENTATION, attention_modules, gates_of


@dataclass(frozen=True)
class LoraConfig:
    """Train adapters instead of the weights.

    Args:
        r: rank.
        lora_alpha: scale; the update is weighted lora_alpha / r.
        lora_dropout: dropout on the adapters' input.
        target_modules: names of the linear layers to adapt, or "all-linear".
    """

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: list[str] | str = "all-linear"


def add_lora(model: PreTrainedModel, config: LoraConfig):
    """Wraps a sparsified model; its gates stay trainable, all other weights freeze.

    Raises:
        ValueError: peft is not installed, or no module matches.
    """
    peft = _peft()
    learnable = [gate.config.learnable and gate.closable for gate in gates_of(model)]
    with torch.device("cpu"):  # a seed draws the same start on every device; peft then moves it to its layer
        wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **asdict(config)))
    for gate, learns in zip(gates_of(wrapped), learnable, strict=True):
        gate.requires_grad_(learns)
    return wrapped


def has_adapters(model: nn.Module) -> bool:
    return hasattr(model, "merge_and_unload")


def merge_adapters(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A model with the adapters of a folder added to its weights.

    Raises:
        ValueError: peft is not installed, or the adapters do not fit.
    """
    peft = _peft()
    try:
        return peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"the adapters in {folder} do not fit {model.config.model_type}: {error}") from error


def load_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Sets the adapters of a model that has some to those of a folder, still to be trained.

    Raises:
        ValueError: they are of another shape or on other layers.
    """
    peft = _peft()
    try:
        weights = peft.load_peft_weights(str(folder), device="cpu")
        own = peft.get_peft_model_state_dict(model)
        if problem := next((name for name in sorted(own.keys() ^ weights.keys())), None):
            raise ValueError(f"{problem} is only in one of them")
        peft.set_peft_model_state_dict(model, weights)
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"the adapters in {folder} do not fit the ones to train: {error}") from error


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError:
        raise ValueError("LoRA needs peft: pip install 'lit-sparse[lora]'") from None
    return peft


class BaseSwitch:
    """Turns a sparsified model with adapters into its base and back, as often as a step does.

    peft's and transformers' own switches walk through all modules; here their flags are found once and set directly.

    Args:
        model: as it stays: modules that are added later are not switched.
    """

    def __init__(self, model: nn.Module):
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._modules = list(model.modules())
        self._adapters = [module for module in self._modules if isinstance(module, BaseTunerLayer)]
        attention = attention_modules(model)
        owners = [module for module in self._modules if isinstance(module, PreTrainedModel)]
        configs = {id(module.config): module.config for module in [*owners, *attention] if hasattr(module, "config")}
        self._configs = list(configs.values())
        self._dense = attention[0].edge_dense_implementation

    @contextmanager
    def as_base(self, implementation: str | None = None) -> Iterator[None]:
        """Inside, the model computes what its base does: adapters, gates and dropout are off.

        Args:
            implementation: of dense attention; None is what the model had before `sparsify`.
        """
        in_training = [module for module in self._modules if module.training]
        self._set(in_training, training=False, adapters_off=True, implementation=implementation or self._dense)
        try:
            yield
        finally:
            self._set(in_training, training=True, adapters_off=False, implementation=IMPLEMENTATION)

    def _set(self, modules: list[nn.Module], *, training: bool, adapters_off: bool, implementation: str) -> None:
        # Past nn.Module's __setattr__, which takes twenty times as long.
        for module in modules:
            module.__dict__["training"] = training
        for adapter in self._adapters:
            adapter.__dict__["_disable_adapters"] = adapters_off
        for config in self._configs:
            config._attn_implementation = implementation
