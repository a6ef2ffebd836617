"""The sparse model folder: a Hugging Face folder with the gates beside it.

config.json, model.safetensors, tokenizer files    as transformers writes them; loads as a dense model anywhere
gates.safetensors                                   every gate's parameters, float32
sparse.json                                         the gate configuration, and what was measured
README.md                                           model card

Of a run with adapters there is a small form as well, which holds only what was trained: instead of the first line

adapter_config.json, adapter_model.safetensors      as peft writes them, float16; the base is the one that they name
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_sparse.adapters import has_adapters, load_adapters, merge_adapters
from lit_sparse.attention import Backend, Gate, GateConfig, gates_of, sparsify
from lit_sparse.attention.bridge import dense
from lit_sparse.model_card import model_card
from lit_sparse.model_digest import digest_of
from lit_sparse.models import load_model

GATES_FILE, SPARSE_FILE, ADAPTER_FILE = "gates.safetensors", "sparse.json", "adapter_config.json"
_FORMAT = 1


def export_sparse(
    model: nn.Module,
    folder: Path,
    *,
    measured: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> str:
    """Writes a sparsified model (adapters, if any, are merged into a copy of the weights). Returns its digest.

    Args:
        measured: the run's summary, for the model card and `sparse.json`.

    Raises:
        ValueError: the folder exists and is not empty, or the model has no gates.
    """
    _check(model, folder)
    merged = _without_adapters(model)
    gates = gates_of(merged)
    with dense(merged):  # so that config.json names an implementation that every machine has
        state = {name: tensor for name, tensor in merged.state_dict().items() if ".edge_gate." not in name}
        merged.save_pretrained(folder, state_dict=state)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    _write_gates(gates, folder, measured)
    return digest_of(merged)


def export_adapters(model: Any, folder: Path, *, measured: Mapping[str, Any]) -> None:
    """Writes what was trained, adapters and gates, without the base model: a few MB.

    Args:
        model: a sparsified model with adapters.
        measured: as in `export_sparse`; its `model` is the base that `load_sparse` puts the adapters on.

    Raises:
        ValueError: as `export_sparse`, or the model has no adapters.
    """
    if not has_adapters(model):
        raise ValueError("this model has no adapters; export the whole model")
    _check(model, folder)
    for config in model.peft_config.values():
        config.base_model_name_or_path = measured["model"]
    half = {name: tensor.half() for name, tensor in model.state_dict().items() if "lora_" in name}
    model.save_pretrained(folder, state_dict=half)
    _write_gates(gates_of(model), folder, measured)


def _check(model: nn.Module, folder: Path) -> None:
    if not gates_of(model):
        raise ValueError("this model has no gates; sparsify it first")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is not empty; choose another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)


def _write_gates(gates: Sequence[Gate], folder: Path, measured: Mapping[str, Any]) -> None:
    tensors = {
        f"{layer}.{name}": tensor.detach().float().contiguous().cpu()
        for layer, gate in enumerate(gates)
        for name, tensor in gate.state_dict().items()
    }
    save_file(tensors, folder / GATES_FILE)
    description: dict[str, Any] = {
        "format": _FORMAT,
        "gate": asdict(gates[0].config),
        "dense_layers": [layer for layer, gate in enumerate(gates) if not gate.closable],
        "measured": dict(measured),
    }
    (folder / SPARSE_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(measured, description["gate"]), encoding="utf-8")


def load_sparse(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    backend: Backend | str = Backend.AUTO,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The sparse model of a folder that `export_sparse` wrote, in evaluation mode; `generate` works.

    Raises:
        ValueError: not such a folder, or gates that do not fit the model.
    """
    folder = Path(folder)
    description = _describe(folder)
    model = _load_dense(folder, dtype, trust_remote_code)
    kept_dense = set(description["dense_layers"])
    model = sparsify(
        model, GateConfig.of(description["gate"]), backend=backend, layers=lambda layer: layer not in kept_dense
    )
    _load_gates(model, folder)
    return model.eval()


def continue_from(folder: str | Path, model: Any, base: str) -> None:
    """Sets adapters and gates of a model that is to be trained to those that `export_adapters` wrote.

    Args:
        model: of the same base, sparsified with the same family of gates, with adapters of the same rank and place.
        base: the base model's name, which the folder must name too.

    Raises:
        ValueError: not such a folder, or it does not fit the model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"start_from={folder}: no such folder; a run with lora writes its adapters/ when it ends (that of "
            "configs/smollm2.yaml is runs/smollm2/adapters), so run that one first"
        )
    description = _describe(folder)
    if not has_adapters(model):
        raise ValueError(f"start_from={folder} continues adapters: set lora to what they were trained with")
    if (written := base_of_adapters(folder)) != base:
        raise ValueError(f"the adapters in {folder} belong to {written!r}, not to {base!r}")
    gates, own = description["gate"], gates_of(model)[0].config
    for key in ("family", "normalisation", "centered"):
        if gates.get(key, False) != getattr(own, key):  # folders older than a switch have it off
            raise ValueError(
                f"the gates in {folder} have {key} {gates.get(key, False)!r}, the config says {getattr(own, key)!r}"
            )
    load_adapters(model, folder)
    _load_gates(model, folder)


def _describe(folder: Path) -> dict[str, Any]:
    if not (folder / SPARSE_FILE).is_file() or not (folder / GATES_FILE).is_file():
        raise ValueError(f"{folder} is no sparse model folder: it lacks {SPARSE_FILE} or {GATES_FILE}")
    description = json.loads((folder / SPARSE_FILE).read_text(encoding="utf-8"))
    if description.get("format") != _FORMAT:
        raise ValueError(f"{folder / SPARSE_FILE} has format {description.get('format')}, this code reads {_FORMAT}")
    return description


def _load_gates(model: nn.Module, folder: Path) -> None:
    try:
        tensors = load_file(folder / GATES_FILE)
        for layer, gate in enumerate(gates_of(model)):
            gate.load_state_dict({name: tensors.pop(f"{layer}.{name}") for name in gate.state_dict()})
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"the gates in {folder} do not fit its model: {error}") from error
    if tensors:
        raise ValueError(f"the gates in {folder} do not fit its model: {len(tensors)} tensors are left over")


def base_of_adapters(folder: Path) -> str | None:
    """The base model that a folder's adapters belong to; None where there are none."""
    file = folder / ADAPTER_FILE
    return json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"] if file.is_file() else None


def _load_dense(folder: Path, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    base = base_of_adapters(folder)
    if base is None:
        return load_model(str(folder), dtype=dtype, trust_remote_code=trust_remote_code)
    return merge_adapters(load_model(base, dtype=dtype, trust_remote_code=trust_remote_code), folder)


def _without_adapters(model: nn.Module) -> PreTrainedModel:
    if not has_adapters(model):
        return model  # type: ignore[return-value]
    import copy

    return copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]
