"""The same tests through every kernel: the processor's, the portable ones, plain torch."""

from __future__ import annotations

import pytest

from sparseworks.exec.native import native

MODULES = ("blocks", "pages", "tokens")


@pytest.fixture(params=["native", "portable", "torch"])
def isa(request, monkeypatch):
    module = native()
    if request.param == "torch":
        for name in MODULES:
            monkeypatch.setattr(f"sparseworks.exec.attention.{name}.native", lambda: None)
        yield request.param
        return
    if module is None:
        pytest.skip("no extension")
    module.use_portable(request.param == "portable")
    yield request.param
    module.use_portable(False)
