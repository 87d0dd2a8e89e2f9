"""What the entries of penalised methods say works, beside their baselines."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.codes.method import CodeMethod
from sparseworks.codes.random_support import basis_of, cluster_basis, factor_basis, slr_random_support
from sparseworks.codes.synthetic_control import linf_synthetic_control
from sparseworks.core.errors import BudgetError, DtypeError, NonFiniteError, ShapeError
from sparseworks.core.published import METHODS, method_from
from sparseworks.solve.coders import GreedyBlocks, ProximalGradient
from sparseworks.solve.datafits import Logistic, Quadratic
from sparseworks.solve.penalties import L1, L1Ball

NAMES = [
    "lasso_cd", "lasso_fista", "lasso_ista", "lasso_admm", "lasso_primal_dual", "elastic_net", "non_negative_lasso", "mcp", "scad",
    "slope", "group_lasso_fista", "nuclear_norm", "logistic_l1", "greedy_bcd",
]  # fmt: skip


def normal(seed: int):
    g = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_methods_code_signals_and_come_back_from_plain_data(name):
    method = METHODS.get(name)
    assert isinstance(method, CodeMethod) and method.when and method.when_not
    changed = method.with_(tolerance=1e-3)
    assert method_from(changed.to_config()) == changed
    d, x = normal(0)(20, 10), normal(1)(4, 10)
    s = sw.method(name).coder(d, torch.sign(x) if name == "logistic_l1" else x)
    assert s.z.shape == (4, 20) and bool((s.certificate < 1e-3).all())


def blocks(fit, seed: int):
    """n = 2000 atoms of very different length, thirty of them in use."""
    rn = normal(seed)
    d = rn(2000, 120) * (0.2 + rn(2000, 1).abs()) / 120**0.5
    w = torch.zeros(2000, dtype=torch.float64)
    w[:: 2000 // 30] = 3 * rn(len(w[:: 2000 // 30]))
    y = w @ d + 0.1 * rn(120)
    y = y if isinstance(fit, Quadratic) else torch.sign(y)
    weight = 0.2 * float((d @ fit.gradient(torch.zeros_like(y), y)).abs().max())
    return lambda **options: GreedyBlocks(fit, L1(weight), tolerance=1e-8, iterations=1500, **options)(d, y[None])


@pytest.mark.parametrize("fit", [Quadratic(), Logistic()], ids=["lasso", "logistic"])
def test_greedy_blocks_take_at_most_half_of_the_iterations_of_cyclic_ones_and_fewer_than_gauss_southwell(fit):
    solve = blocks(fit, 0)
    ours, plain = solve(), solve(rule="gs", settle=0)
    assert bool(ours.converged.all())
    assert 2 * int(ours.steps) < int(plain.steps)
    cyclic = solve(rule="cyclic", settle=0, every=50)  # within 1500 iterations neither may even arrive
    assert int(cyclic.steps) > 4 * int(ours.steps)


def test_newton_on_the_non_zeros_ends_what_greedy_blocks_begin():
    solve = blocks(Logistic(), 1)
    assert 2 * int(solve().steps) < int(solve(settle=0).steps)


def nearly_dependent(seed: int, mixed: bool, samples: int = 160, features: int = 200):
    """Copies of four factors, or mixtures of them, whose own parts are of scales 1 to 0.001, and six coefficients that tell on them alike."""
    rn, g = normal(seed), torch.Generator().manual_seed(seed)
    labels = torch.arange(features) % 4
    at = torch.randperm(features, generator=g)[:6]
    scales = torch.logspace(0, -3, 4, dtype=torch.float64)[labels]
    if mixed:
        scales = torch.logspace(0, -3, features, dtype=torch.float64)[torch.randperm(features, generator=g)]
    x = (rn(samples, 4) @ rn(4, features) / 2 if mixed else rn(samples, 4)[:, labels]) + scales * rn(samples, features)
    w = torch.zeros(features, dtype=torch.float64)
    w[at] = torch.sign(rn(6)) / scales[at]
    size = x.square().mean(0).sqrt()
    clean = x @ w
    return x / size, clean, clean + 0.3 * rn(samples), labels


@pytest.mark.parametrize("mixed", [False, True], ids=["copies", "mixtures"])
def test_another_basis_predicts_where_features_nearly_depend_on_each_other_at_several_scales(mixed):
    plain, ours = [], []
    for seed in range(3):
        x, clean, y, labels = nearly_dependent(seed, mixed)
        error = lambda found, clean=clean: float((found - clean).square().mean())  # noqa: E731
        bases = torch.eye(200, dtype=x.dtype), factor_basis(x, 4) if mixed else cluster_basis(x, labels)
        for best, basis, prices in zip((plain, ours), bases, ((0.3, 1.0, 3.0), (0.9, 3.0, 9.0)), strict=True):
            fits = [x @ slr_random_support(x, y, L1(c), basis=basis, tolerance=1e-7, iterations=3000) for c in prices]
            best.append(min(map(error, [*fits, y])))  # a price of 0 gives back what was measured
    assert 2 * sum(ours) < sum(plain)


def copies_of_one_scale(seed: int):
    """300 copies of four factors, all up to a fiftieth, 80 samples, and five coefficients of 50."""
    rn, g = normal(seed), torch.Generator().manual_seed(seed + 100)
    labels = torch.arange(300) % 4
    x = rn(80, 4)[:, labels] + 0.02 * rn(80, 300)
    w = torch.zeros(300, dtype=torch.float64)
    w[torch.randperm(300, generator=g)[:5]] = 50 * torch.sign(rn(5))
    return x, x @ w, x @ w + 0.3 * rn(80), labels


def test_another_basis_predicts_better_at_one_scale_too():
    """Each at its best price, in sum of two draws. A small price is the lasso's best, and takes it thousands of iterations; with fewer it looks
    several times worse."""
    plain = ours = 0.0
    for seed in range(2):
        x, clean, y, labels = copies_of_one_scale(seed)
        plain += least_error(x, clean, y, torch.eye(300, dtype=x.dtype), 0.01, 0.03, 0.1)
        ours += least_error(x, clean, y, cluster_basis(x, labels), 1.5, 3.0)
    assert 1.5 * ours < plain, (ours, plain)


def least_error(x, clean, y, basis, *prices):
    """Mean squared error of the prediction at the best of these prices."""
    fits = [slr_random_support(x, y, L1(c), basis=basis, tolerance=1e-8, iterations=50_000) for c in prices]
    return min(float((x @ w - clean).square().mean()) for w in fits)


def test_the_basis_finds_the_clusters_and_has_columns_of_one_length():
    rn, labels = normal(0), torch.arange(300) % 4
    x = rn(80, 4)[:, labels] + 0.02 * rn(80, 300)
    basis = cluster_basis(x)
    assert basis.shape == (300, 304)
    assert torch.allclose(basis, cluster_basis(x, labels)) and torch.equal(basis, basis_of(x))
    factors = factor_basis(x)
    assert factors.shape == (300, 304)
    mixed = rn(80, 4) @ rn(4, 300) + 0.02 * rn(80, 300)
    assert torch.equal(basis_of(mixed), factor_basis(mixed, 4))
    assert torch.allclose((x @ factors).square().sum(0), torch.full((304,), 80.0, dtype=x.dtype))
    with pytest.raises(BudgetError, match="1 to 80"):
        factor_basis(x, 81)
    assert torch.allclose(torch.linalg.vector_norm(x @ basis, dim=0), torch.full((304,), 80.0**0.5, dtype=x.dtype))


def test_a_price_and_a_ball_of_the_length_it_leaves_are_one_problem():
    x, _, y, _ = nearly_dependent(1, False, 80)
    some, basis = x[:, :8], torch.eye(8, dtype=x.dtype)
    priced = slr_random_support(some, y, L1(40.0), basis=basis)
    ball = L1Ball(float(priced.abs().sum()))
    bounded = slr_random_support(some, y, ball, basis=basis, tolerance=1e-6, iterations=1000)
    assert torch.allclose(some @ priced, some @ bounded, atol=0.05)
    with pytest.raises(ShapeError, match="8 features"):
        slr_random_support(some, y, L1(1.0), basis=torch.eye(3))
    with pytest.raises(ShapeError, match="samples"):
        slr_random_support(some, y[:5], L1(1.0))
    with pytest.raises(ShapeError, match="One sample"):
        slr_random_support(some[:1], y[:1], L1(1.0))
    with pytest.raises(DtypeError):
        slr_random_support(some, y.float(), L1(1.0))


def panel(rn, shocked: bool):
    """Random-walk factors; after 40 of 60 times three of twenty controls may be moved by 3 up or down."""
    p = (0.3 * rn(60, 3).cumsum(0)) @ (1 + 0.5 * rn(21, 3)).T + 0.5 * rn(60, 21)
    if shocked:
        p[40:, 1:4] += 3 * torch.sign(rn(3))
    return p[:, 1:], p[:, 0]


def test_equal_weights_bear_shocks_to_controls_that_few_weights_do_not():
    errors = {True: [0.0, 0.0], False: [0.0, 0.0]}
    for shocked in errors:
        rn = normal(0)
        for _ in range(12):
            controls, treated = panel(rn, shocked)
            simplex = linf_synthetic_control(controls[:40], treated[:40], 0.0, non_negative=True, iterations=120)
            equal = linf_synthetic_control(controls[:40], treated[:40], 20.0, iterations=120)
            for i, s in enumerate((simplex, equal)):
                errors[shocked][i] += float((s(controls[40:]) - treated[40:]).square().mean().sqrt()) / 12
    assert errors[True][1] < 0.93 * errors[True][0]
    assert errors[False][1] < 1.1 * errors[False][0]


def test_synthetic_control_between_the_simplex_and_equal_weights():
    controls, treated = panel(normal(1), False)
    few = linf_synthetic_control(controls, treated, 0.0, non_negative=True)
    assert float(few.weights.min()) >= 0 and float(few.weights.sum()) == pytest.approx(1, abs=1e-6)
    assert bool((few.weights == 0).any())
    equal = linf_synthetic_control(controls, treated, 1e6, iterations=3000)
    assert torch.allclose(equal.weights, torch.full((20,), 0.05, dtype=controls.dtype), atol=1e-3)
    assert float((equal(controls) - treated).mean()) == pytest.approx(0, abs=1e-9)
    free = linf_synthetic_control(controls, treated, 5.0, total=None)
    x, y = controls - controls.mean(0), treated - treated.mean()
    from sparseworks.solve.penalties import LInf

    same = ProximalGradient(penalty=LInf(5.0), tolerance=1e-7, iterations=3000)(x.T.contiguous(), y[None]).z[0]
    assert torch.allclose(free.weights, same, atol=1e-3)


def test_synthetic_control_refuses_bad_panels():
    with pytest.raises(ShapeError, match="times"):
        linf_synthetic_control(torch.ones(5, 3), torch.ones(4))
    with pytest.raises(NonFiniteError):
        linf_synthetic_control(torch.full((5, 3), torch.nan), torch.ones(5))
    with pytest.raises(DtypeError):
        linf_synthetic_control(torch.ones(5, 3, dtype=torch.long), torch.ones(5))
