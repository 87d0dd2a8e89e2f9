"""Gradients by autograd, conjugates and proximal maps by brute force."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import CalibrationError
from sparseworks.solve.coders import CoordinateDescent
from sparseworks.solve.datafits import DATAFITS, Cox, Huber, Logistic, Poisson, Quadratic

G = torch.Generator().manual_seed(0)
U = torch.randn(5, 4, generator=G, dtype=torch.float64) * 2
SEEN = {
    "quadratic": torch.randn(5, 4, generator=G, dtype=torch.float64),
    "huber": torch.randn(5, 4, generator=G, dtype=torch.float64),
    "logistic": torch.sign(torch.randn(5, 4, generator=G, dtype=torch.float64)),
    "poisson": torch.randint(0, 5, (5, 4), generator=G).double(),
    "cox": torch.rand(5, 4, generator=G, dtype=torch.float64) + 0.1,
}
SEEN["cox"][:, 1] *= -1  # censored
SEEN["cox"][0, 2] = SEEN["cox"][0, 3]  # a tie
FITS = {"quadratic": Quadratic(), "huber": Huber(0.8), "logistic": Logistic(), "poisson": Poisson(), "cox": Cox()}
SUMS = [name for name in FITS if name != "cox"]


def test_every_registered_datafit_is_tested():
    assert set(FITS) <= set(DATAFITS.names())


@pytest.mark.parametrize("name", FITS)
def test_the_gradient_is_that_of_the_value(name):
    u = U.clone().requires_grad_()
    (grad,) = torch.autograd.grad(FITS[name].value(u, SEEN[name]).sum(), u)
    assert torch.allclose(FITS[name].gradient(U, SEEN[name]), grad)


@pytest.mark.parametrize("name", SUMS)
def test_the_model_lies_above_or_is_the_second_derivative(name):
    fit, y = FITS[name], SEEN[name]
    bend, h = fit.bend(U, y), 1e-4
    second = (fit.gradient(U + h, y) - fit.gradient(U - h, y)) / (2 * h)
    if name == "huber":
        for moved in (U + 1.0, U - 3.0, -U):
            model = fit.gradient(U, y) * (moved - U) + bend / 2 * (moved - U).square()
            assert bool((fit.value(moved, y) <= fit.value(U, y) + model.sum(-1) + 1e-9).all())
    else:
        assert torch.allclose(bend, second, atol=1e-5)
    assert bool((bend <= fit.curvature + 1e-12).all())


@pytest.mark.parametrize("name", SUMS)
def test_the_conjugate_meets_the_value_at_the_gradient_and_lies_above_elsewhere(name):
    fit, y = FITS[name], SEEN[name]
    v = fit.gradient(U, y)
    assert torch.allclose(fit.conjugate(v, y), (v * U).sum(-1) - fit.value(U, y), atol=1e-9)
    for other in (torch.zeros_like(U), -U, 3 * U):
        assert bool((fit.conjugate(v, y) >= (v * other).sum(-1) - fit.value(other, y) - 1e-9).all())
    if name != "quadratic":
        assert bool(fit.conjugate(v - 100 * torch.sign(y + 0.5), y).isinf().all())


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("step", [0.05, 1.0, 20.0])
def test_the_proximal_map_has_a_gradient_of_zero(name, step):
    fit, y = FITS[name], SEEN[name]
    for u in (U, 20 * U):
        v = fit.prox(u, y, step)
        left = v - u + step * fit.gradient(v, y)
        assert float((left.abs() / (1 + u.abs())).max()) < 1e-6


def test_cox_is_blind_to_a_shift_and_to_censored_times_alone():
    assert torch.allclose(Cox().value(U, SEEN["cox"]), Cox().value(U + 3, SEEN["cox"]))
    assert float(Cox().value(U, -SEEN["cox"].abs()).abs().max()) == 0
    first = U[0] * 0
    assert torch.allclose(
        Cox().value(first, torch.tensor([1.0, 2.0, 3.0, 4.0]).double()), torch.tensor(24.0).double().log()
    )


@pytest.mark.parametrize(("datafit", "wrong"), [(Logistic(), 0.5), (Poisson(), -1.0)])
def test_what_cannot_be_observed_is_refused_before_anything_is_solved(datafit, wrong):
    y = torch.ones(2, 4, dtype=torch.float64)
    y[1, 2] = wrong
    with pytest.raises(CalibrationError, match=r"labels|counts"):
        CoordinateDescent(datafit=datafit)(torch.eye(4, dtype=torch.float64), y)
    assert all(FITS[name].refuses(seen) is None for name, seen in SEEN.items())
