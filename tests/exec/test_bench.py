"""A bench checks before it times, and times everyone in the same rounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.core.errors import KernelError
from sparseworks.exec import KERNELS
from sparseworks.exec.bench import PEER, bench
from sparseworks.exec.rivals import RIVALS, Rival


@pytest.fixture
def quick(clock, monkeypatch):
    """Injected times, and only two rivals: dense torch and one that multiplies wrongly."""
    from sparseworks.exec.ceilings import Ceilings

    wrong = Rival("wrong", lambda w, s: lambda x: torch.zeros(x.shape[0], w.shape[0]))
    monkeypatch.setattr(RIVALS, "_items", {PEER: RIVALS.get(PEER), "wrong": wrong})
    monkeypatch.setattr("sparseworks.exec.bench.ceilings", lambda **_: Ceilings(2e10, 1e11, 1, 1 << 27))
    clock.us = {PEER: 100.0, "toy-any": 25.0}
    return clock


def test_ratios_are_over_dense_torch_and_wrong_products_are_not_timed(quick, random_support):
    timed, refused = bench(nn.Linear(24, 16), random_support(16, 24, 0.5), 4, rounds=2)
    by_name = {c.name: c for c in timed}
    assert by_name["toy-any"].ratio == pytest.approx(4.0)
    assert by_name["toy-any"].ours
    assert not by_name[PEER].ours
    assert timed[0].name == "toy-any"
    assert "wrong product" in refused["wrong"]
    assert "wrong" not in quick.calls[0]
    assert refused["picky-any"]


def test_without_rivals_dense_torch_still_runs(quick, random_support):
    timed, refused = bench(nn.Linear(24, 16), random_support(16, 24, 0.5), 4, rivals=False)
    assert {c.name for c in timed if not c.ours} == {PEER}
    assert "wrong" not in refused


def test_a_wrong_kernel_of_ours_is_an_error(quick, random_support, monkeypatch):
    monkeypatch.setattr(KERNELS.get("toy-any"), "reference", lambda x, p, b: x.new_ones(x.shape[0], p.shape[0]))
    with pytest.raises(KernelError, match="toy-any is off"):
        bench(nn.Linear(24, 16), random_support(16, 24, 0.5), 4)
