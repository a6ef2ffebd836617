"""The models that a command compares: found, and their tokenizers loaded, before any weights are."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_sparse.models.base import SPARSE_FILE, load_config, load_model, load_tokenizer
from lit_sparse.models.sparse_folder import base_of_adapters, load_sparse


class Candidate(NamedTuple):
    """A model by name, its tokenizer, and the tokens that it can read at once (inf where it does not say)."""

    name: str
    is_sparse: bool
    tokenizer: PreTrainedTokenizerBase
    positions: float

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        """The model in evaluation mode, on the GPU if there is one."""
        model = load_any(self.name, dtype=dtype)
        model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
        return model

    @property
    def measured(self) -> dict[str, Any]:
        """What the export of a sparse model says about it."""
        return _description(self.name).get("measured", {}) if self.is_sparse else {}

    def fingerprint(self) -> str:
        """Of the name and, for a folder, of its weights' sizes and times: while equal, the weights are the same."""
        folder = Path(self.name).expanduser()
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hashlib.sha256(repr((self.name, state)).encode()).hexdigest()[:16]


def load_any(name: str, *, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model in evaluation mode: sparse from a sparse model folder or adapters and gates, else dense.

    Raises:
        ValueError: it cannot be found or read.
    """
    if _is_sparse(name):
        return load_sparse(Path(name).expanduser(), dtype=dtype, trust_remote_code=trust_remote_code)
    return load_model(name, dtype=dtype, trust_remote_code=trust_remote_code)


def files_of(name: str) -> str:
    """Where a model's configuration lies, and a tokenizer for certain: with adapters, at their base."""
    return base_of_adapters(Path(name).expanduser()) or name


def find_candidates(name: str, against: str | None) -> tuple[Candidate, Candidate | None]:
    """The model, and what it is compared with: `against`, or the base that a sparse model records; a model without
    gates is compared with nothing unless `against` is given.

    Raises:
        ValueError: one of them cannot be found, or neither has a tokenizer.
    """
    recorded = _recorded_base(name) if _is_sparse(name) else None
    base = against or recorded
    if _is_sparse(name) and base is None:
        raise ValueError(f"{name} does not record its base model; name it with --against")
    positions = _positions(name)
    tokenizer, missing = _tokenizer(name)
    if base is None:
        if tokenizer is None:
            raise missing
        return Candidate(name, False, tokenizer, positions), None
    try:
        base_positions = _positions(base)
    except ValueError as error:
        hint = "" if against else f" (the base that {name} records; name another with --against)"
        raise ValueError(f"{error}{hint}") from error
    base_tokenizer, _ = _tokenizer(base)
    shared = tokenizer or base_tokenizer
    if shared is None:
        raise missing
    return (
        Candidate(name, _is_sparse(name), shared, positions),
        Candidate(base, _is_sparse(base), base_tokenizer or shared, base_positions),
    )


def _is_sparse(name: str) -> bool:
    return (Path(name).expanduser() / SPARSE_FILE).is_file()


def _recorded_base(folder: str) -> str | None:
    base: str | None = _description(folder).get("measured", {}).get("model")
    return base


def _description(folder: str) -> dict[str, Any]:
    described: dict[str, Any] = json.loads((Path(folder).expanduser() / SPARSE_FILE).read_text(encoding="utf-8"))
    return described


def _positions(name: str) -> float:
    return getattr(load_config(files_of(name)).get_text_config(), "max_position_embeddings", None) or math.inf


def _tokenizer(name: str) -> tuple[PreTrainedTokenizerBase | None, ValueError]:
    """The tokenizer, or None and why."""
    try:
        return load_tokenizer(files_of(name)), ValueError()
    except ValueError as error:
        return None, error
