"""Models by folder, hub name or `package:NAME`, and what is made of them: adapters, sparse model folders."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_sparse.models.base import load_config, load_model, load_tokenizer, resolve_model
    from lit_sparse.models.compared import load_any

__all__ = ["load_any", "load_config", "load_model", "load_tokenizer", "resolve_model"]


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: `auto` has to be imported while transformers is."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "compared" if name == "load_any" else "base"
    return getattr(import_module(f"lit_sparse.models.{module}"), name)
