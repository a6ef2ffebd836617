"""MLP activations on disk, for several epochs or several transcoders from one pass of the model.

    cache.json              sources of the cache: model, text, dtype, sequences per shard
    shard_{i}.safetensors   inputs and outputs (L, N, D), input_ids (N,), with int8 also one scale per row (L, N)

Shard i always holds the same training sequences. It is written whole or not at all, so filling can be resumed.
A token of SmolLM2-135M takes 35 kB with int8, 69 kB with bfloat16.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, Int8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_sparse.common.files import replacing, write_atomically
from lit_sparse.common.progress import progress_bar
from lit_sparse.data.base import BatchDataset
from lit_sparse.models.compared import find_candidates, load_any
from lit_sparse.transcoders.activations import Batch, MLPs

FORMAT = 1
DTYPES = ("int8", "bfloat16")
_SEQUENCES_PER_PASS = 8


class ActivationCache:
    """A folder of shards.

    Args:
        folder: the folder's path.
        dtype: "int8", with a scale for each token and layer, or "bfloat16".

    Raises:
        ValueError: the dtype is another one.
    """

    def __init__(self, folder: str | Path, dtype: str = "int8"):
        if dtype not in DTYPES:
            raise ValueError(f"a cache's dtype is one of {', '.join(DTYPES)}, not {dtype!r}")
        self.folder = Path(folder).expanduser()
        self.dtype = dtype

    def check(self, key: dict[str, Any]) -> None:
        """Checks that the cache in the folder, if there is one, was made from `key`.

        Raises:
            ValueError: the folder holds a cache that was made from something else.
        """
        file = self.folder / "cache.json"
        if not file.is_file():
            return
        found = json.loads(file.read_text(encoding="utf-8"))
        wanted = self._described(key)
        if differing := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
            raise ValueError(
                f"the activations in {self.folder} were made with another {', '.join(differing)}; choose another "
                "folder, or remove this one"
            )

    def fill(self, model: str, dataset: BatchDataset, shards: list[Tensor], key: dict[str, Any]) -> None:
        """Writes the missing shards. The model is loaded only if some are missing.

        Args:
            model: the model's name.
            shards: for each shard, the dataset indices of its sequences.
            key: plain values that say what the activations are made from.

        Raises:
            ValueError: see `check`, or the model cannot be read.
        """
        self.check(key)
        missing = [index for index in range(len(shards)) if not self._file(index).is_file()]
        if not missing:
            return
        write_atomically(self.folder / "cache.json", json.dumps(self._described(key), indent=2).encode())
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loaded: Any = load_any(model, dtype=torch.float32)
        mlps = MLPs(loaded.to(device))
        with progress_bar(f"activations of {model}") as advance:
            for done, index in enumerate(missing):
                passes = shards[index].split(_SEQUENCES_PER_PASS)
                self._write(index, mlps, [dataset.batch(sequences) for sequences in passes])
                advance(done + 1, len(missing))

    def read(self, index: int) -> Batch:
        """One shard as a batch: `mlp_inputs` and `mlp_outputs` (L, N, D) in float32, `input_ids` (N,).

        Raises:
            ValueError: the shard is missing or damaged.
        """
        try:
            tensors = load_file(self._file(index))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"cannot read {self._file(index)}: {error}; remove it to have it made again") from error
        batch = {"input_ids": tensors["input_ids"]}
        for name in ("inputs", "outputs"):
            scale = tensors.get(f"{name}_scale")
            batch[f"mlp_{name}"] = tensors[name].float() if scale is None else dequantised(tensors[name], scale)
        return batch

    def _write(self, index: int, mlps: MLPs, batches: list[Batch]) -> None:
        device = next(mlps.model.parameters()).device
        tensors = {"input_ids": torch.cat([batch["input_ids"].flatten() for batch in batches])}
        passes = [mlps.capture({name: part.to(device) for name, part in batch.items()}) for batch in batches]
        for name in ("inputs", "outputs"):
            rows = torch.cat([getattr(part, name).flatten(1, 2).float().cpu() for part in passes], dim=1)
            if self.dtype == "int8":
                tensors[name], tensors[f"{name}_scale"] = quantised(rows)
            else:
                tensors[name] = rows.bfloat16()
        with replacing(self._file(index)) as temporary:
            save_file(tensors, temporary)

    def _described(self, key: dict[str, Any]) -> dict[str, Any]:
        return {"format": FORMAT, "dtype": self.dtype, **key}

    def _file(self, index: int) -> Path:
        return self.folder / f"shard_{index:05d}.safetensors"


def quantised(
    rows: Float32[Tensor, "layer token model"],
) -> tuple[Int8[Tensor, "layer token model"], Float32[Tensor, "layer token"]]:
    """Whole numbers up to 127, and each row's scale. The error is at most half a percent of a row's largest value."""
    scale = rows.abs().amax(-1).clamp_min(1e-30) / 127
    return (rows / scale[..., None]).round().to(torch.int8), scale


def dequantised(
    rows: Int8[Tensor, "layer token model"], scale: Float[Tensor, "layer token"]
) -> Float32[Tensor, "layer token model"]:
    """Values of `quantised` rows in float32."""
    return rows.float() * scale[..., None].float()


def fingerprint(model: str, dataset: BatchDataset, sequences: Tensor) -> dict[str, Any]:
    """Fingerprints of the model and of the text on which activations depend.

    Raises:
        ValueError: there is no such model.
    """
    ids = hashlib.sha256()
    for part in sequences.split(256):
        batch = dataset.batch(part)
        for name in ("input_ids", "position_ids"):
            ids.update(batch[name].numpy().tobytes())
    return {"model": find_candidates(model, None)[0].fingerprint(), "text": ids.hexdigest()[:32]}
