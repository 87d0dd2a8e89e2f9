"""The compiled coordinate descent: every instruction set, what it refuses, what it leaves where rounding ends it."""

from __future__ import annotations

import importlib

import pytest
import torch

from sparseworks.core.errors import DtypeError, KernelError, ShapeError
from sparseworks.exec.codes import can_descend, descend, descend_columns
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


def columns(dtype, slope=3.0):
    """Operands of `descend_columns`: 37 of 50 long atoms, a signal of five of them."""
    atoms = torch.randn(50, 300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = torch.arange(3, 40)
    y = 0.5 * atoms[5:10].sum(0)
    slopes, curvature = torch.full((37,), slope, dtype=dtype), atoms[kept].square().sum(1)
    return atoms.to(dtype), kept, y.to(dtype), slopes, curvature.to(dtype), torch.zeros(37, dtype=dtype)


@needs_native
@pytest.mark.parametrize("isa", features()["built"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "ridge"), [("l1", 0.0), ("l1", 5.0), ("non_negative", 0.0), ("mcp", 0.0)])
def test_on_the_residual_as_on_inner_products(isa, dtype, kind, ridge):
    module, before = native(), features()["isa"]
    assert module is not None
    atoms, kept, y, slopes, curvature, start = columns(dtype)
    options = {"kind": kind, "ridge": ridge, "gamma": 3.0 if kind == "mcp" else torch.inf}
    try:
        module.use(isa)
        z, visits, done = descend_columns(atoms, kept, y, slopes, curvature, start, 1e-3, 10_000, **options)
    finally:
        module.use(before)
    d = atoms[kept]
    right, one = (d @ y)[None], torch.ones(1, dtype=dtype)
    expected, _ = descend(d @ d.T, right, slopes, one, start[None], one * 1e-3, 500, **options)
    assert done and visits > 37 and not bool(start.any())
    torch.testing.assert_close(z, expected[0], rtol=1e-4, atol=1e-5)
    again, visits, done = descend_columns(atoms, kept, y - z @ d, slopes, curvature, z, 1e-2, 1, **options)
    assert done and visits == 37
    torch.testing.assert_close(again, z, rtol=1e-4, atol=1e-5)


@needs_native
def test_on_the_residual_it_stops_after_so_many_looks():
    *operands, start = columns(torch.float64)
    z, visits, done = descend_columns(*operands, start, 0.0, 30)
    assert visits == 37 and not done and bool(z.any())


@needs_native
def test_bad_operands_on_the_residual_are_refused():
    atoms, kept, y, slopes, curvature, start = columns(torch.float64)
    with pytest.raises(ShapeError, match="must be"):
        descend_columns(atoms, kept, y[:5], slopes, curvature, start, 1e-3, 9)
    with pytest.raises(DtypeError, match="float64"):
        descend_columns(atoms, kept, y, slopes.float(), curvature, start, 1e-3, 9)
    with pytest.raises(ShapeError, match="kept"):
        descend_columns(atoms, kept + 20, y, slopes, curvature, start, 1e-3, 9)


@needs_native
def test_what_is_not_a_number_is_not_converged():
    atoms, kept, y, slopes, curvature, start = columns(torch.float64)
    atoms = atoms.clone()
    atoms[kept[3], 0] = torch.nan
    _, _, done = descend_columns(atoms, kept, y, slopes, curvature, start, 1e-3, 200)
    assert not done
    with pytest.raises(ShapeError, match="goal"):
        descend_columns(*columns(torch.float64), float("nan"), 9)
    with pytest.raises(ShapeError, match="one dimension"):
        descend_columns(atoms, kept[:, None], y, slopes, curvature, start, 1e-3, 9)
