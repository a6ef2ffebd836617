"""Shapes and dtypes in annotations are checked wherever a test calls what carries them: jaxtyping's hook with beartype.

Imported by `conftest.py` before anything of lit_sparse. Only functions with a jaxtyping annotation are checked, since
mypy proves the rest. Left out is what would not bear a wrapper around every function: what torch.compile traces in a
layer (attention's masks, noise, gates, edges, interface and operator; the computation inside the operator is checked),
Triton's kernels (compiled from their source) and most of `models` (transformers inspects its configurations).
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

ROOMS = ("anatomy", "attribution", "circuits", "data", "objective", "records", "report", "tracing", "transcoders")
MODULES = (
    "attention.blockwise",
    "attention.open_edges",
    "attention.reference",
    "attention.tiles",
    "models.digest",
    "training.gate_noise",
    "training.held_out",
)
_CONFIG = BeartypeConf(is_pep484_tower=True)  # an int will do for a float, as for mypy


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations checked at each call, if there are shapes among them."""
    if any("jaxtyping." in repr(annotation) for annotation in function.__annotations__.values()):
        return beartype(conf=_CONFIG)(function)
    return function


install_import_hook([f"lit_sparse.{name}" for name in ROOMS + MODULES], f"{__name__}.checked")
