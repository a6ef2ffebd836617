"""The models that a command compares: found, and their tokenizers loaded, before any weights are."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_sparse.models.base import SPARSE_FILE, load_config, load_model, load_tokenizer
from lit_sparse.models.hub import find_sparse
from lit_sparse.models.sparse_folder import base_of_adapters, load_sparse


class Candidate(NamedTuple):
    """A model by name, its folder if it is sparse, its tokenizer, and the tokens that it can read at once (inf where it
    does not say)."""

    name: str
    folder: Path | None
    tokenizer: PreTrainedTokenizerBase
    positions: float

    @property
    def is_sparse(self) -> bool:
        return self.folder is not None

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        """The model in evaluation mode, on the GPU if there is one."""
        model = load_sparse(self.folder, dtype=dtype) if self.folder else load_model(self.name, dtype=dtype)
        model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
        return model

    @property
    def measured(self) -> dict[str, Any]:
        """Measurements that the export of a sparse model recorded."""
        return _measured(self.folder) if self.folder else {}

    def fingerprint(self) -> str:
        """Hash of the name and, for a folder, of its weights' sizes and times. Equal hashes mean equal weights."""
        folder = self.folder or Path(self.name).expanduser()
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hashlib.sha256(repr((self.name, state)).encode()).hexdigest()[:16]


def load_any(name: str, *, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model in evaluation mode: sparse from a sparse model folder or adapters and gates, by its name as in
    `lit_sparse.from_pretrained`, else dense.

    Raises:
        ValueError: it cannot be found or read.
    """
    if folder := find_sparse(name):
        return load_sparse(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    return load_model(name, dtype=dtype, trust_remote_code=trust_remote_code)


def files_of(name: str) -> str:
    """The folder or name at which a model's configuration lies, and a tokenizer for certain: with adapters, that of
    their base."""
    return _files_of(name, find_sparse(name))


def find_candidates(name: str, against: str | None) -> tuple[Candidate, Candidate | None]:
    """The model, and what it is compared with: `against`, or the base that a sparse model records; a model without
    gates is compared with nothing unless `against` is given.

    Raises:
        ValueError: one of them cannot be found, or neither has a tokenizer.
    """
    folder = find_sparse(name)
    base = against or (_measured(folder).get("model") if folder else None)
    if folder and base is None:
        raise ValueError(f"{name} does not record its base model; name it with --against")
    files = _files_of(name, folder)
    positions = _positions(files)
    tokenizer, missing = _tokenizer(files)
    if base is None:
        if tokenizer is None:
            raise missing
        return Candidate(name, None, tokenizer, positions), None
    try:
        base_folder = find_sparse(base)
        base_files = _files_of(base, base_folder)
        base_positions = _positions(base_files)
    except ValueError as error:
        hint = "" if against else f" (the base that {name} records; name another with --against)"
        raise ValueError(f"{error}{hint}") from error
    base_tokenizer, _ = _tokenizer(base_files)
    shared = tokenizer or base_tokenizer
    if shared is None:
        raise missing
    return (
        Candidate(name, folder, shared, positions),
        Candidate(base, base_folder, base_tokenizer or shared, base_positions),
    )


def _files_of(name: str, folder: Path | None) -> str:
    if folder is None:
        return name
    return base_of_adapters(folder) or str(folder)


def _measured(folder: Path) -> dict[str, Any]:
    measured: dict[str, Any] = json.loads((folder / SPARSE_FILE).read_text(encoding="utf-8")).get("measured", {})
    return measured


def _positions(files: str) -> float:
    return getattr(load_config(files).get_text_config(), "max_position_embeddings", None) or math.inf


def _tokenizer(files: str) -> tuple[PreTrainedTokenizerBase | None, ValueError]:
    """The tokenizer, or None and why."""
    try:
        return load_tokenizer(files), ValueError()
    except ValueError as error:
        return None, error
