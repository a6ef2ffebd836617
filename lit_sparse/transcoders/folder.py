"""Transcoder folders in the open layout for cross-layer transcoders (circuit-tracer reads it):

    W_enc_{i}.safetensors   W_enc_{i} (F, D), b_enc_{i} (F,), b_dec_{i} (D,), threshold_{i} (F,) if there are thresholds
    W_dec_{i}.safetensors   W_dec_{i} (F, L - i, D), or (F, 1, D) for features that write to their own layer only
    config.yaml             model_name, model_kind, the hooks, and our own fields under `lit_sparse`

A set of transcoders may also be in circuit-tracer's other layout, which is read only:

    layer_{i}.safetensors   W_enc (F, D), b_enc (F,), W_dec (F, D), b_dec (D,), activation_function.threshold (F,)

A folder without our fields has no top-k. It is read as JumpReLU with its thresholds, or with thresholds of zero (ReLU).
It also does not say on which weights the transcoder was trained; `check_model` warns of that.
"""

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_sparse.records.digest import require_same
from lit_sparse.transcoders.transcoder import READS, WRITES, Transcoder, TranscoderConfig

log = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
_KINDS = {True: "cross_layer_transcoder", False: "transcoder_set"}


def save_transcoder(
    transcoder: Transcoder,
    folder: str | Path,
    *,
    model_name: str,
    model_digest: str,
    measured: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a transcoder folder, whole or not at all. It replaces a transcoder folder of that name.

    Args:
        transcoder: a transcoder of raw MLP inputs and outputs.
        model_name: the model that it reads, as `lit_sparse` names models.
        model_digest: digest of that model (see `lit_sparse.models.digest`).
        measured: plain values for people to read.
        dtype: type of the weights on disk, float32 or bfloat16.

    Raises:
        ValueError: the folder exists and is no transcoder folder, or the dtype is another one.
    """
    folder, config = Path(folder), transcoder.config
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"transcoders are saved in float32 or bfloat16, not {dtype}")
    if folder.exists() and not (folder / CONFIG_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is no transcoder folder; choose another or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))

    def stored(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", dtype).contiguous().clone()

    try:
        for layer, decoder in enumerate(transcoder.W_dec):
            encoder = {"W_enc": transcoder.W_enc, "b_enc": transcoder.b_enc, "b_dec": transcoder.b_dec}
            if transcoder.threshold is not None:
                encoder["threshold"] = transcoder.threshold
            tensors = {f"{name}_{layer}": stored(tensor[layer]) for name, tensor in encoder.items()}
            save_file(tensors, scratch / f"W_enc_{layer}.safetensors")
            save_file({f"W_dec_{layer}": stored(decoder)}, scratch / f"W_dec_{layer}.safetensors")
        ours: dict[str, Any] = {"activation": config.activation, "model": model_name, "model_digest": model_digest}
        ours["measured"] = dict(measured)
        if config.activation == "topk":
            ours["k"] = config.k
        description = {
            "model_name": model_name,
            "model_kind": _KINDS[config.cross_layer],
            "feature_input_hook": transcoder.reads,
            "feature_output_hook": transcoder.writes,
            "scan": f"{Path(model_name).name or model_name}-transcoder",
            "lit_sparse": ours,
        }
        (scratch / CONFIG_FILE).write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")
        scratch.chmod(0o755)  # only the owner can read mkdtemp's folders
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def describe_transcoder(folder: str | Path) -> dict[str, Any]:
    """Reads the config.yaml of a transcoder folder.

    Raises:
        ValueError: there is no such file, or it does not name a kind of transcoder.
    """
    file = Path(folder) / CONFIG_FILE
    if not file.is_file():
        raise ValueError(f"{folder} is no transcoder folder: it has no {CONFIG_FILE}")
    try:
        description = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no readable YAML: {error}") from error
    if not isinstance(description, dict) or description.get("model_kind") not in _KINDS.values():
        raise ValueError(f"{file} must say model_kind: {' or '.join(_KINDS.values())}")
    return description


def check_model(folder: str | Path, name: str, digest: str | None = None) -> None:
    """Refuses a folder of transcoders that were trained on another model, and warns if it does not record the model.

    Args:
        name: name of the model in messages.
        digest: digest of the model; None checks only that the folder records one.

    Raises:
        ValueError: the folder belongs to another model, or an older version wrote it.
    """
    description = describe_transcoder(folder)
    if "lit_sparse" not in description:
        if digest is not None:
            log.warning("the transcoders in %s do not record their model: make sure that it was %s", folder, name)
        return
    ours = description["lit_sparse"]
    found = ours.get("model_digest")
    advice = f"it was trained on another model ({ours.get('model')}) than {name}; name or train transcoders of {name}"
    require_same(f"the transcoder folder {folder}", found, digest or found, advice)


def load_transcoder(folder: str | Path) -> Transcoder:
    """The transcoder of a folder, in float32 and in evaluation mode.

    Raises:
        ValueError: the folder is no transcoder folder, weights are missing or unreadable, shapes do not fit, or
            something is not supported: other hooks than those of `Transcoder`, skip connections, negative thresholds.
    """
    folder = Path(folder)
    description = describe_transcoder(folder)
    layers, tensors = _tensors(folder)
    ours = description.get("lit_sparse") or {}
    cross_layer = description["model_kind"] == _KINDS[True]
    encoder = tensors.get("W_enc_0")
    if encoder is None or encoder.dim() != 2:
        raise ValueError(f"{folder}: W_enc_0 must be a matrix of features by model width")
    activation = ours.get("activation", "jumprelu")
    config = TranscoderConfig(
        features=len(encoder),
        cross_layer=cross_layer,
        activation=activation,
        **({"k": ours["k"]} if "k" in ours else {"k": 1}),
    )
    try:
        transcoder = Transcoder(
            config,
            layers,
            encoder.shape[1],
            reads=description.get("feature_input_hook", READS[0]),
            writes=description.get("feature_output_hook", WRITES[0]),
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    with torch.no_grad():
        for name, target in _targets(transcoder).items():
            found = tensors.get(name)
            if found is None and name.startswith("threshold"):
                target.zero_()
                continue
            if found is None or found.shape != target.shape:
                shape = "missing" if found is None else tuple(found.shape)
                raise ValueError(f"{folder}: {name} is {shape}, expected {tuple(target.shape)}")
            target.copy_(found)
    if left := sorted(set(tensors) - set(_targets(transcoder))):
        raise ValueError(f"{folder} has {left[0]}, which is no part of a transcoder here")
    if transcoder.threshold is not None and bool((transcoder.threshold < 0).any()):
        raise ValueError(f"{folder} has thresholds below 0: its features could be active with negative values")
    return transcoder.eval()


def _tensors(folder: Path) -> tuple[int, dict[str, Tensor]]:
    """The number of layers, and all tensors by their names in our layout."""
    tensors: dict[str, Tensor] = {}
    if layers := len(list(folder.glob("W_enc_*.safetensors"))):
        for layer in range(layers):
            for name in (f"W_enc_{layer}", f"W_dec_{layer}"):
                tensors |= _read(folder / f"{name}.safetensors")
        return layers, tensors
    layers = len(list(folder.glob("layer_*.safetensors")))
    if layers == 0:
        raise ValueError(f"{folder} holds no W_enc_0.safetensors, nor a layer_0.safetensors")
    for layer in range(layers):
        for name, tensor in _read(folder / f"layer_{layer}.safetensors").items():
            decoder = tensor[:, None] if name == "W_dec" and tensor.dim() == 2 else tensor
            tensors[f"{name.removeprefix('activation_function.')}_{layer}"] = decoder
    return layers, tensors


def _read(file: Path) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {file.name} in {file.parent}: {error}") from error
    return found


def _targets(transcoder: Transcoder) -> dict[str, Tensor]:
    """Every tensor of a folder by name, as a view of the parameter that it belongs in."""
    targets: dict[str, Tensor] = {}
    for layer, decoder in enumerate(transcoder.W_dec):
        targets[f"W_dec_{layer}"] = decoder
        targets[f"W_enc_{layer}"] = transcoder.W_enc[layer]
        targets[f"b_enc_{layer}"] = transcoder.b_enc[layer]
        targets[f"b_dec_{layer}"] = transcoder.b_dec[layer]
        if transcoder.threshold is not None:
            targets[f"threshold_{layer}"] = transcoder.threshold[layer]
    return targets
