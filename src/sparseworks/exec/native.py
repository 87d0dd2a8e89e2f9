"""The compiled extension, where there is one: what it can do here, or why it cannot be used."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch  # noqa: F401  loads the one OpenMP pool that the extension shares

_SWITCH = "SPARSEWORKS_NATIVE"


@cache
def native() -> ModuleType | None:
    """The module `sparseworks.exec._native`, or None: not built, not loadable, or switched off by `SPARSEWORKS_NATIVE=0`."""
    return _load()[0]


@cache
def why_missing() -> str | None:
    """A sentence saying why there is no compiled extension, or None where there is one."""
    return _load()[1]


@cache
def features() -> dict[str, Any]:
    """What the extension uses: `isa` ("avx2", "portable", or "none" without extension), `openmp`, `version`."""
    module = native()
    return {"isa": "none", "openmp": False, "version": 0} if module is None else dict(module.features())


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    if os.environ.get(_SWITCH, "1") == "0":
        return None, f"the compiled extension is switched off by {_SWITCH}=0"
    try:
        return import_module("sparseworks.exec._native"), None
    except ImportError as error:
        return None, f"the compiled extension is not available ({error}); install the package with a C++17 compiler"
