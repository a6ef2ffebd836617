"""Models by folder, hub name or `package:NAME`, and what is made of them: adapters, sparse model folders."""

from lit_sparse.models.base import load_config, load_model, load_tokenizer, resolve_model

__all__ = ["load_config", "load_model", "load_tokenizer", "resolve_model"]
