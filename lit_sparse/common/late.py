"""Late imports, which connect packages that do not import each other. `lit_sparse/__init__.py` makes the connections.

A lower package calls a function of a higher one by name (`lent`). A function for another library runs when that library
is imported (`when_imported`). So importing lit_sparse imports neither.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_lent: dict[str, str] = {}


def lend(name: str, function: str) -> None:
    """Makes `lent(name)` return a function, given as `module:name`."""
    _lent[name] = function


def lent(name: str) -> Callable[..., Any]:
    """The function lent under a name. Its module is imported now."""
    module, function = _lent[name].split(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


def when_imported(module: str, then: str) -> None:
    """Calls a function, given as `module:name`, once `module` has been imported, or now if it is imported already."""
    owner, function = then.split(":")

    def call() -> None:
        getattr(import_module(owner), function)()

    if module in sys.modules:
        call()
    else:
        sys.meta_path.insert(0, _Watch(module, call))


class _Watch:
    """Finds one module as Python does, and calls a function after its code has run."""

    def __init__(self, module: str, then: Callable[[], None]):
        self._module, self._then = module, then

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        if name != self._module:
            return None
        sys.meta_path.remove(self)
        spec: ModuleSpec | None = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def and_then(module: ModuleType) -> None:
            execute(module)
            self._then()

        spec.loader.exec_module = and_then  # type: ignore[method-assign]
        return spec
