"""The compiled coordinate descent: every instruction set, what it refuses, what it leaves where rounding ends it."""

from __future__ import annotations

import importlib

import pytest
import torch

from sparseworks.core.errors import DtypeError, KernelError, ShapeError
from sparseworks.exec.codes import can_descend, descend
from sparseworks.exec.native import features, native

G = torch.Generator().manual_seed(0)
D = torch.randn(37, 20, generator=G, dtype=torch.float64)
X = torch.randn(21, 20, generator=G, dtype=torch.float64)
needs_native = pytest.mark.skipif(native() is None, reason="no compiled extension")


def operands(dtype, goal=1e-3):
    d, x = D.to(dtype), X.to(dtype)
    scale = torch.linspace(0.1, 2.0, 21, dtype=dtype)
    return (
        d @ d.T,
        x @ d.T,
        torch.ones(37, dtype=dtype),
        scale,
        torch.zeros(21, 37, dtype=dtype),
        torch.full_like(scale, goal),
        5000,
    )


def violation(gram, right, slopes, scale, z):
    g, limit = z @ gram - right, scale.unsqueeze(1) * slopes
    return torch.where(z != 0, (g + limit * z.sign()).abs(), (g.abs() - limit).clamp(min=0)).amax(1)


@needs_native
@pytest.mark.parametrize("isa", features()["built"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_row_ends_with_a_small_violation(isa, dtype):
    module, before = native(), features()["isa"]
    assert module is not None
    try:
        module.use(isa)
        gram, right, slopes, scale, start, goal, most = operands(dtype)
        z, passes = descend(gram, right, slopes, scale, start, goal, most)
    finally:
        module.use(before)
    assert bool((violation(gram, right, slopes, scale, z) <= 1.2e-3).all())
    assert bool((passes >= 1).all()) and bool((passes < most).all())
    assert int((z[-1] != 0).sum()) < int((z[0] != 0).sum())
    assert not bool(start.any())


@needs_native
def test_a_goal_below_rounding_ends_and_threads_change_nothing():
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        z, passes = descend(*operands(torch.float32, goal=0.0))
        assert bool((passes <= 5000).all())
        found.append(z)
    assert torch.equal(*found)
    gram, right, slopes, scale, *_ = operands(torch.float32)
    assert bool((violation(gram, right, slopes, scale, found[0]) < 1e-3).all())


@needs_native
def test_a_warm_start_at_the_optimum_takes_no_pass():
    gram, right, slopes, scale, start, goal, most = operands(torch.float64, goal=1e-9)
    z, _ = descend(gram, right, slopes, scale, start, goal, most)
    again, passes = descend(gram, right, slopes, scale, z, goal * 2, most)
    assert torch.equal(again, z) and int(passes.max()) == 0


@needs_native
def test_bad_operands_are_refused():
    gram, right, slopes, scale, start, goal, most = operands(torch.float64)
    with pytest.raises(ShapeError, match="must be"):
        descend(gram, right[:, :5], slopes, scale, start, goal, most)
    with pytest.raises(ShapeError, match="must be"):
        descend(gram, right, slopes[:3], scale, start, goal, most)
    with pytest.raises(DtypeError, match="float64"):
        descend(gram, right.float(), slopes, scale, start, goal, most)
    assert not can_descend(gram.half())


def test_without_the_extension_it_says_so(monkeypatch):
    monkeypatch.setattr(importlib.import_module("sparseworks.exec.codes.descend"), "native", lambda: None)
    assert not can_descend(D @ D.T)
    with pytest.raises(KernelError, match="compiled"):
        descend(*operands(torch.float64))
