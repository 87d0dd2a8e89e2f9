"""The same tests through every kernel: every instruction set that is built, and plain torch."""

from __future__ import annotations

import pytest

from sparseworks.exec.native import features

MODULES = ("blocks", "cache", "columns", "largest", "pages", "tokens")


@pytest.fixture(params=["torch", *features()["built"]])
def isa(request, monkeypatch, running):
    if request.param == "torch":
        for name in MODULES:
            monkeypatch.setattr(f"sparseworks.exec.attention.{name}.native", lambda: None)
        yield request.param
        return
    with running(request.param):
        yield request.param
