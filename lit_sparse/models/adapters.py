"""Low-rank adapters through peft."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_sparse.attention.bridge import IMPLEMENTATION, attention_modules, claim_saving, gates_of

ADAPTERS_FILE = "adapters.json"  # no names that peft knows, which would put the adapters on a dense model
_WEIGHTS_FILE = "adapters.safetensors"
ADAPTERS_FILES = (ADAPTERS_FILE, _WEIGHTS_FILE)


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


def add_lora(model: PreTrainedModel, config: LoraConfig) -> PreTrainedModel:
    """Wraps a sparsified model; its gates stay trainable, all other weights freeze. `save_pretrained` writes both.

    Raises:
        ValueError: no module matches.
    """
    peft = _peft()
    learnable = [gate.config.learnable and gate.closable for gate in gates_of(model)]
    with torch.device("cpu"):  # a seed draws the same start on every device; peft then moves it to its layer
        wrapped = _with_adapters(model, peft.LoraConfig(task_type="CAUSAL_LM", **asdict(config)))
    for gate, learns in zip(gates_of(wrapped), learnable, strict=True):
        gate.requires_grad_(learns)
    claim_saving(wrapped)
    return wrapped


def has_adapters(model: nn.Module) -> bool:
    return hasattr(model, "merge_and_unload")


def write_adapters(model: Any, state: Mapping[str, Any], folder: Path) -> None:
    """Writes the adapters of a model, whose state is given, in half precision: a few MB."""
    (config,) = model.peft_config.values()
    # Without the base's name: sparse.json has it. peft keeps sets, which json does not.
    values = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    values["base_model_name_or_path"] = None
    (folder / ADAPTERS_FILE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    half = {name: tensor.half().contiguous().cpu() for name, tensor in _weights_of(model, state).items()}
    save_file(half, folder / _WEIGHTS_FILE, metadata={"format": "pt"})


def merge_adapters(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A model with the adapters of a folder added to its weights.

    Raises:
        ValueError: the adapters do not fit.
    """
    peft = _peft()
    try:
        values = json.loads((folder / ADAPTERS_FILE).read_text(encoding="utf-8"))
        wrapped: Any = _with_adapters(model, peft.PeftConfig.from_peft_type(**values))
        _set_weights(wrapped, load_file(folder / _WEIGHTS_FILE))
        merged: PreTrainedModel = wrapped.merge_and_unload()
        return merged
    except (RuntimeError, ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
        raise ValueError(f"the adapters in {folder} do not fit {model.config.model_type}: {error}") from error


def load_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Sets the adapters of a model that has some to those of a folder, still to be trained.

    Adapters of a larger rank than the folder's compute the same at first: the rows that are new stay as they were
    drawn, and their columns of the second factor are zero.

    Raises:
        ValueError: they have a larger rank, another scale, or are on other layers.
    """
    try:
        weights = load_file(folder / _WEIGHTS_FILE)
        (config,) = getattr(model, "peft_config").values()  # noqa: B009 - peft puts it there
        old = json.loads((folder / ADAPTERS_FILE).read_text(encoding="utf-8"))
        if old["lora_alpha"] / old["r"] != config.lora_alpha / config.r:
            raise ValueError(
                f"they have lora_alpha {old['lora_alpha']} at r {old['r']}: "
                f"set lora_alpha to {old['lora_alpha'] / old['r'] * config.r:g}"
            )
        _set_weights(model, _widened(weights, _weights_of(model)))
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise ValueError(f"the adapters in {folder} do not fit the ones to train: {error}") from error


def _widened(weights: dict[str, Tensor], drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` in the shapes of adapters of a larger rank, which were drawn just now."""
    wide = {}
    for name, weight in weights.items():
        wide[name] = weight
        if name not in drawn or drawn[name].shape == weight.shape:
            continue
        rank = min(weight.shape)
        first = "lora_A" in name  # (rank, inputs); the second factor is (outputs, rank)
        if rank > drawn[name].shape[0 if first else 1]:
            raise ValueError(f"{name} has rank {rank}, more than is to be trained")
        full = drawn[name].to(weight.dtype, copy=True) if first else drawn[name].new_zeros(drawn[name].shape)
        (full[:rank] if first else full[:, :rank]).copy_(weight)
        wide[name] = full
    return wide


def _weights_of(model: nn.Module, state: Mapping[str, Any] | None = None) -> dict[str, Any]:
    weights: dict[str, Any] = _peft().get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    return weights


def _set_weights(model: nn.Module, weights: dict[str, Any]) -> None:
    if problem := next((name for name in sorted(_weights_of(model).keys() ^ weights.keys())), None):
        raise ValueError(f"{problem} is only in one of them")
    _peft().set_peft_model_state_dict(model, weights)


def _with_adapters(model: PreTrainedModel, config: Any) -> PreTrainedModel:
    with warnings.catch_warnings():  # peft 0.19 asks transformers 5 for a name that is deprecated there
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        wrapped: PreTrainedModel = _peft().get_peft_model(model, config)
    return wrapped


def _peft() -> ModuleType:
    """peft, whose import takes seconds."""
    import peft

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
        self._dense, self._watch = attention[0].edge_dense_implementation, attention[0].edge_watch

    @contextmanager
    def as_base(self, implementation: str | None = None) -> Iterator[None]:
        """Context in which the model computes what its base does: adapters, gates and dropout are off.

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
        self._watch.paused = implementation != IMPLEMENTATION
