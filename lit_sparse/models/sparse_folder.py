"""The sparse model folder.

config.json                     says that the model is `lit_sparse`'s: plain transformers and tools that read models on
                                their own refuse it, instead of running it dense; with lit_sparse imported `Auto`
                                classes and pipelines load it (`lit_sparse.models.auto`)
gates.safetensors               every gate's state, float32
sparse.json                     the gates' family and its options, the base model's name, and what was measured
README.md                       model card
tokenizer files                 as transformers writes them
base_config.json                the base model's config.json
model.sparse.safetensors        all weights

Of a run with adapters there is a small form as well, which holds only what was trained. It has, for the last two,

adapters.json                   peft's configuration of the adapters
adapters.safetensors            their weights, float16, to be put on the base that sparse.json names
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_sparse.attention import Backend, GateConfig, gates_of, sparsify
from lit_sparse.attention.bridge import base_name_of, dense
from lit_sparse.models.adapters import (
    ADAPTERS_FILE,
    ADAPTERS_FILES,
    has_adapters,
    load_adapters,
    merge_adapters,
    write_adapters,
)
from lit_sparse.models.base import (
    BASE_CONFIG_FILE,
    LOGGED_IN,
    SPARSE_FILE,
    VARIANT,
    HubAccess,
    load_model,
    load_weights,
)
from lit_sparse.models.card import model_card
from lit_sparse.models.digest import digest_of

GATES_FILE = "gates.safetensors"
_WEIGHTS_FILE, _INDEX_FILE = f"model.{VARIANT}.safetensors", f"model.safetensors.index.{VARIANT}.json"
_FORMAT = 2


def export_sparse(
    model: nn.Module, folder: Path, *, measured: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None = None
) -> str:
    """Writes a sparsified model (adapters, if any, are merged into a copy of the weights). Returns its digest.

    Args:
        measured: the run's summary, for the model card and `sparse.json`; its `model` is the base.

    Raises:
        ValueError: the folder exists and is not empty, or the model has no gates.
    """
    _check(model, folder)
    merged = _without_adapters(model)
    state = merged.state_dict()
    _write_weights(merged, state, folder)
    _write_rest(merged, state, folder, measured, tokenizer)
    return digest_of(merged)


def export_adapters(
    model: nn.Module, folder: Path, *, measured: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None = None
) -> str:
    """Writes what was trained, adapters and gates, without the base model: a few MB. Returns the digest of the whole.

    Args:
        model: a sparsified model with adapters.
        measured: as in `export_sparse`; `load_sparse` puts the adapters on its `model`.

    Raises:
        ValueError: as `export_sparse`, or the model has no adapters.
    """
    if not has_adapters(model):
        raise ValueError("this model has no adapters; export the whole model")
    _check(model, folder)
    state = model.state_dict()
    write_adapters(model, state, folder)
    _write_rest(model, state, folder, measured, tokenizer)
    return digest_of(_without_adapters(model))


def save_sparse(
    model: nn.Module,
    save_directory: str | Path,
    *,
    is_main_process: bool = True,
    state_dict: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """The `save_pretrained` of a sparsified model: `export_sparse`, or `export_adapters` of a model with adapters,
    into a folder that may hold an earlier save. The figures of the card are left out: the model may have changed.

    Args:
        state_dict: weights and gates to write, default: the model's own. Where these are sharded, whole ones are given.
        options: of transformers' `save_pretrained`, such as `max_shard_size`; adapters have no use for them.

    Raises:
        ValueError: with `push_to_hub`, for which models have a method of their own.
    """
    if options.pop("push_to_hub", False):
        raise ValueError("save_pretrained writes a folder; to upload a sparse model call model.push_to_hub(name)")
    if not is_main_process:
        return
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    earlier = [*folder.glob("model*.safetensors*"), *(folder / name for name in (*ADAPTERS_FILES, BASE_CONFIG_FILE))]
    for file in earlier:
        file.unlink(missing_ok=True)
    state = model.state_dict() if state_dict is None else state_dict
    if has_adapters(model):
        write_adapters(model, state, folder)
    else:
        _write_weights(model, state, folder, **options)
    name = base_name_of(model)
    _write_rest(model, state, folder, {"model": name} if name else {})


def _check(model: nn.Module, folder: Path) -> None:
    if not gates_of(model):
        raise ValueError("this model has no gates; sparsify it first")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is not empty; choose another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)


def _write_weights(model: Any, state: Mapping[str, Any], folder: Path, **options: Any) -> None:
    weights = {name: tensor for name, tensor in state.items() if ".edge_gate." not in name}
    with dense(model):  # so that the base's config names an implementation that every machine has
        type(model).save_pretrained(model, folder, state_dict=weights, variant=VARIANT, **options)
    (folder / "config.json").rename(folder / BASE_CONFIG_FILE)


def _write_rest(
    model: nn.Module,
    state: Mapping[str, Any],
    folder: Path,
    measured: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    gates = gates_of(model)
    places = {id(module): name for name, module in model.named_modules()}
    tensors = {
        f"{layer}.{name}": state[f"{places[id(gate)]}.{name}"].detach().float().contiguous().cpu()
        for layer, gate in enumerate(gates)
        for name in gate.state_dict()
    }
    save_file(tensors, folder / GATES_FILE)
    description: dict[str, Any] = {
        "format": _FORMAT,
        "gate": gates[0].config.as_mapping(),
        "dense_layers": [layer for layer, gate in enumerate(gates) if not gate.closable],
        "measured": dict(measured),
    }
    _write_json(folder / SPARSE_FILE, description)
    _write_json(folder / "config.json", {"model_type": "lit_sparse"})
    (folder / "README.md").write_text(model_card(measured, description["gate"]), encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_sparse(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    backend: Backend | str = Backend.AUTO,
    trust_remote_code: bool = False,
    access: HubAccess = LOGGED_IN,
) -> PreTrainedModel:
    """The sparse model of a folder that `export_sparse`, `export_adapters` or `save_pretrained` wrote, in evaluation
    mode; `generate` works.

    Args:
        access: to the hub that adapters' base is on.

    Raises:
        ValueError: not such a folder, or gates that do not fit the model.
    """
    folder = Path(folder).expanduser()
    description = describe(folder)
    model = _load_dense(folder, dtype, trust_remote_code, access)
    model.name_or_path = description["measured"].get("model", "")
    kept_dense = set(description["dense_layers"])
    model = sparsify(
        model, GateConfig.of(description["gate"]), backend=backend, layers=lambda layer: layer not in kept_dense
    )
    _load_gates(model, folder)
    model.eval()
    return model


def continue_from(folder: str | Path, model: Any, base: str) -> None:
    """Sets adapters and gates of a model that is to be trained to those that `export_adapters` wrote. The gates'
    sharpness stays that of the model's own configuration.

    Args:
        model: of the same base, sparsified with the same family of gates, with adapters on the same layers, of the same
            rank or a larger one, and of the same scale (lora_alpha / r).
        base: the base model's name, which the folder must name too.

    Raises:
        ValueError: not such a folder, or it does not fit the model.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"start_from={folder}: no such folder; a run with lora writes its adapters to model/ when it ends "
            "(that of configs/smollm2.yaml is runs/smollm2/model), so run that one first"
        )
    description = describe(folder)
    if not (folder / ADAPTERS_FILE).is_file():
        raise ValueError(f"start_from={folder} has no adapters; name the model/ folder of a run with lora")
    if not has_adapters(model):
        raise ValueError(f"start_from={folder} continues adapters: set lora to what they were trained with")
    if (written := description["measured"].get("model")) != base:
        raise ValueError(f"the adapters in {folder} belong to {written!r}, not to {base!r}")
    written_gate, own = GateConfig.of(description["gate"]), gates_of(model)[0].config
    for key in ("family", "normalisation", "centered"):
        there, here = getattr(written_gate, key), getattr(own, key)
        if there != here:
            raise ValueError(f"the gates in {folder} have {key} {there!r}, the config says {here!r}")
    load_adapters(model, folder)
    _load_gates(model, folder)
    for gate in gates_of(model):
        gate.advance(0.0)


def describe(folder: Path) -> dict[str, Any]:
    """The content of a folder's sparse.json.

    Raises:
        ValueError: no sparse model folder, or of another version's format.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r}; lit_sparse.from_pretrained loads models of a hub by name")
    if not (folder / SPARSE_FILE).is_file():
        hint = ""
        if (folder / "model" / SPARSE_FILE).is_file():
            hint = f"; the model of that run is {folder / 'model'}"
        elif (folder / "config.json").is_file():
            hint = "; it is a dense model, which lit_sparse.sparsify gives gates"
        raise ValueError(f"{folder} is no sparse model folder: it has no {SPARSE_FILE}{hint}")
    description: dict[str, Any] = json.loads((folder / SPARSE_FILE).read_text(encoding="utf-8"))
    if description.get("format") != _FORMAT:
        raise ValueError(
            f"{folder / SPARSE_FILE} has format {description.get('format')}, and this version of lit_sparse reads "
            f"{_FORMAT}: write the folder again (`lit-sparse export` from a run's checkpoint)"
        )
    return description


def missing_files(folder: Path) -> list[str]:
    """Names of the files that a sparse model folder lacks, of those that the model is loaded from."""
    return [name for name in (SPARSE_FILE, "config.json", *weights_of(folder)) if not (folder / name).is_file()]


def weights_of(folder: Path) -> list[str]:
    """Names of the files that a folder's gates and weights, or adapters, are loaded from."""
    if any((folder / name).is_file() for name in ADAPTERS_FILES):
        return [GATES_FILE, *ADAPTERS_FILES]
    index = folder / _INDEX_FILE
    if not index.is_file():
        return [GATES_FILE, BASE_CONFIG_FILE, _WEIGHTS_FILE]
    shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [GATES_FILE, BASE_CONFIG_FILE, _INDEX_FILE, *sorted(set(shards))]


def _load_gates(model: nn.Module, folder: Path) -> None:
    try:
        tensors = load_file(folder / GATES_FILE)
        for layer, gate in enumerate(gates_of(model)):
            gate.load_state_dict({name: tensors.pop(f"{layer}.{name}") for name in gate.state_dict()})
    except (KeyError, RuntimeError, SafetensorError, OSError) as error:
        raise ValueError(f"the gates in {folder} do not fit its model: {error}") from error
    if tensors:
        raise ValueError(f"the gates in {folder} do not fit its model: {len(tensors)} tensors are left over")


def base_of_adapters(folder: Path) -> str | None:
    """The base model that a folder's adapters belong to; None where there are none."""
    return describe(folder)["measured"]["model"] if (folder / ADAPTERS_FILE).is_file() else None


def _load_dense(folder: Path, dtype: torch.dtype, trust_remote_code: bool, access: HubAccess) -> PreTrainedModel:
    base = base_of_adapters(folder)
    if base is None:
        return load_weights(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    model = load_model(base, dtype=dtype, trust_remote_code=trust_remote_code, access=access)
    return merge_adapters(model, folder)


def _without_adapters(model: nn.Module) -> Any:
    return copy.deepcopy(model).merge_and_unload() if has_adapters(model) else model  # type: ignore[operator]
