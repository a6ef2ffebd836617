"""Sparse model folders for transformers' `Auto` classes and pipelines.

With lit_sparse imported, before or after transformers, transformers knows the model type that a sparse folder's
config.json names: `AutoModelForCausalLM.from_pretrained(folder)` is `lit_sparse.from_pretrained(folder)`. Without it
the folder is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.configuration_utils import PreTrainedConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SparseModelConfig(PreTrainedConfig):
    """Stands for a sparse model folder; the model that is loaded has its base's configuration."""

    model_type = "lit_sparse"


class SparseModelForCausalLM:
    """Class that `AutoModelForCausalLM` calls for a sparse model folder."""

    config_class = SparseModelConfig

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> PreTrainedModel:
        """The sparse model (see `lit_sparse.from_pretrained`).

        Args:
            dtype: of the weights: torch's or by name; "auto" is that of the base's configuration, None float32.
            device_map: one device, or "auto" for the current accelerator.
            options: about where and how files are read; nothing that changes the model.

        Raises:
            ValueError: not a sparse model folder, or an option that would make another model of it.
        """
        from lit_sparse.attention.bridge import IMPLEMENTATION
        from lit_sparse.models.base import load_config
        from lit_sparse.models.hub import from_pretrained

        attention = getattr(config, "_attn_implementation", None)
        changed = sorted(set(options) - _HARMLESS) + ["attn_implementation"] * (attention not in (None, IMPLEMENTATION))
        if changed:
            raise ValueError(
                f"a sparse model cannot be loaded with {', '.join(changed)}; load it without, or see "
                "lit_sparse.from_pretrained for what can be set"
            )
        if dtype == "auto":
            from lit_sparse.models.compared import files_of

            dtype = load_config(files_of(str(folder)), trust_remote_code=trust_remote_code).dtype
        wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32
        where = {key: options[key] for key in _WHERE if key in options}
        model = from_pretrained(folder, dtype=wanted, trust_remote_code=trust_remote_code, **where)
        return model if device_map is None else model.to(_one_device(device_map))  # type: ignore[arg-type]

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
        raise ValueError("a sparse model is loaded from its folder (from_pretrained), not built from its configuration")


_WHERE = ("revision", "token", "cache_dir", "local_files_only")

# What transformers passes along whatever the caller asked for, and what says where files are.
_HARMLESS = {
    "_commit_hash", "_from_auto", "_from_pipeline", "adapter_kwargs", "force_download", "low_cpu_mem_usage",
    "use_safetensors", *_WHERE,
}  # fmt: skip


def _one_device(device_map: Any) -> torch.device:
    devices = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
    if len(devices) != 1 or devices & {"balanced", "balanced_low_0", "sequential"}:
        raise ValueError(f"a sparse model is loaded onto one device; device_map is {device_map!r}")
    (device,) = devices
    if device == "auto":
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return torch.device(device)


def register_config() -> None:
    """Called once transformers' register of configurations is imported."""
    from transformers.models.auto.configuration_auto import AutoConfig

    AutoConfig.register(SparseModelConfig.model_type, SparseModelConfig)


def register_model() -> None:
    """Called once transformers' register of models is imported."""
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    AutoModelForCausalLM.register(SparseModelConfig, SparseModelForCausalLM)
