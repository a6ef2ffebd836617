"""Packages of other projects, which the extra `interop` installs."""

import importlib
import os
from types import ModuleType

import pytest


def needed(name: str) -> ModuleType:
    """The module; skips without it, unless LIT_SPARSE_REQUIRE_INTEROP=1."""
    if os.environ.get("LIT_SPARSE_REQUIRE_INTEROP") == "1":
        return importlib.import_module(name)
    module: ModuleType = pytest.importorskip(name)
    return module
