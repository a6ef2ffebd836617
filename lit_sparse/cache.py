"""The folder of what is made once and used again: converted models, tokenised data, compiled kernels."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$LIT_SPARSE_CACHE`, by default `~/.cache/lit_sparse`. May be deleted at any time."""
    return Path(os.environ.get("LIT_SPARSE_CACHE", Path.home() / ".cache" / "lit_sparse"))
