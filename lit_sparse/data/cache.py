"""Packed blocks on disk, so that the second start of a run does not tokenise again.

Files lie in `$LIT_SPARSE_CACHE/data` (default `~/.cache/lit_sparse/data`) and may be deleted at any time. A file's
name is the hash of everything that it was made from.
"""

import hashlib
import json
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from lit_sparse.common.files import cache_dir, replacing
from lit_sparse.data.packing import PackedBlocks

FORMAT = 1
"""Raise this when documents are split, ordered, tokenised or packed differently."""


def cache_path(key: dict[str, object]) -> Path:
    """File for the blocks that `key` (plain JSON values) describes."""
    digest = hashlib.sha256(json.dumps({"format": FORMAT, **key}, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "data" / f"{digest[:32]}.safetensors"


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that decides how a text is tokenised: vocabulary, merges, normalisation, end of sequence."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: dict[str, object] = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    else:
        rules = json.loads(backend.to_str())
        for name in ("truncation", "padding"):  # settings of the latest call, not of the tokenizer
            rules.pop(name, None)
    rules["eos"] = tokenizer.eos_token_id
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def load_blocks(path: Path) -> dict[str, PackedBlocks] | None:
    """The blocks of each split, or None if there is no such file or it cannot be read."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return None
    names = sorted({name.partition("/")[0] for name in tensors})
    return {name: PackedBlocks(tensors[f"{name}/input_ids"], tensors[f"{name}/position_ids"]) for name in names}


def save_blocks(path: Path, splits: dict[str, PackedBlocks]) -> None:
    """Write the blocks of each split to one file, whole or not at all. A full disk only causes a warning."""
    tensors = {}
    for name, blocks in splits.items():
        tensors[f"{name}/input_ids"] = blocks.input_ids.contiguous()
        tensors[f"{name}/position_ids"] = blocks.position_ids.contiguous()
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary)
    except (OSError, SafetensorError) as error:
        rank_zero_warn(f"tokenised text was not cached in {path.parent} ({error}); set LIT_SPARSE_CACHE to a folder")
