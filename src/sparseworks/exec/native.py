"""The compiled extension, where there is one: what it can do here, or why it cannot be used."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch  # noqa: F401  loads the one OpenMP pool that the extension shares

_SWITCH = "SPARSEWORKS_NATIVE"
_NAME = "sparseworks.exec._native"


@cache
def native() -> ModuleType | None:
    """The module `sparseworks.exec._native`, or None: not built, not loadable, or switched off by `SPARSEWORKS_NATIVE=0`.

    `SPARSEWORKS_NATIVE` may also be the path of another build of it, such as the one with sanitizers.
    """
    return _load()[0]


@cache
def why_missing() -> str | None:
    """A sentence saying why there is no compiled extension, or None where there is one."""
    return _load()[1]


@cache
def features() -> dict[str, Any]:
    """What the extension uses: `isa` ("avx2", "avx512", "portable": SSE2 or NEON, or "none" without extension), `openmp`, `version`.

    `built` are the instruction sets that are built and run on this processor; `native().use(name)` changes over to one of them.
    """
    module = native()
    return {"isa": "none", "built": [], "openmp": False, "version": 0} if module is None else dict(module.features())


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    asked = os.environ.get(_SWITCH, "1")
    if asked == "0":
        return None, f"the compiled extension is switched off by {_SWITCH}=0"
    try:
        return (import_module(_NAME) if asked == "1" else _from_file(asked)), None
    except ImportError as error:
        return None, f"the compiled extension is not available ({error}); install the package with a C++17 compiler"


def _from_file(path: str) -> ModuleType:
    spec = spec_from_file_location(_NAME, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ImportError(f"{_SWITCH} is neither 0 nor 1 nor the file of an extension: {path!r}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
