"""Low-rank adapters through peft (extra `lora`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from transformers import PreTrainedModel

from lit_sparse.attention.bridge import dense, gates_of


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


@contextmanager
def as_base(model: nn.Module) -> Iterator[None]:
    """Inside, a model with adapters computes what its base does: adapters, gates and dropout are off."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with model.disable_adapter(), dense(model):  # type: ignore[operator]
            yield
    finally:
        for module in in_training:
            module.training = True
