"""Coders of penalised problems reach one optimum, and their certificates tell the truth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparseworks.core.errors import KernelError
from sparseworks.solve import inner_products, working_set
from sparseworks.solve.certificate import certify
from sparseworks.solve.coders import CoordinateDescent, GraphADMM, GreedyBlocks, PrimalDual, ProximalGradient
from sparseworks.solve.coders.descent import Screened, path
from sparseworks.solve.datafits import Cox, Huber, Logistic, Poisson, Quadratic
from sparseworks.solve.linear import LinearMap
from sparseworks.solve.maps import Atoms
from sparseworks.solve.penalties import L1, MCP, SCAD, TV1D, Box, ElasticNet, Group, NonNegativeL1, WeightedL1

G = torch.Generator().manual_seed(0)
D = torch.randn(40, 20, generator=G, dtype=torch.float64) / 4
X = torch.randn(6, 20, generator=G, dtype=torch.float64)
WEIGHTS = tuple((torch.rand(40, generator=G) * 0.3 + 0.1).tolist())
ALL = [CoordinateDescent, ProximalGradient, GraphADMM, PrimalDual]


class Plain(LinearMap):
    """The same products, but not a matrix."""

    domain, codomain, dtype = (8, 5), (4, 5), torch.float64

    def forward(self, z):
        return (z.flatten(-2) @ D).unflatten(-1, (4, 5))

    def adjoint(self, u):
        return (u.flatten(-2) @ D.T).unflatten(-1, (8, 5))


def cost(fit, penalty, z, y):
    return fit.value(z @ D, y) + penalty.value(z)


@pytest.mark.parametrize(
    "penalty", [L1(0.3), ElasticNet(0.4, 0.7), NonNegativeL1(0.2), WeightedL1(WEIGHTS)], ids=lambda p: type(p).__name__
)
def test_all_coders_reach_the_optimum_that_the_gap_proves(penalty):
    found = [kind(penalty=penalty, tolerance=1e-5)(D, X) for kind in ALL]
    best = torch.stack([cost(Quadratic(), penalty, s.z, X) for s in found]).amin(0)
    for s in found:
        assert bool(s.converged.all()) and s.proves == "duality gap"
        assert bool((cost(Quadratic(), penalty, s.z, X) - best <= 1e-5 * X.square().sum(1) / 2 + 1e-12).all())
    assert bool((found[0].z != 0).any(1).all()) and bool((found[0].z == 0).any(1).all())


@pytest.mark.parametrize(
    ("fit", "seen"),
    [(Logistic(), torch.sign(X)), (Huber(0.5), X), (Poisson(), (2 * X).abs().round())],
    ids=["logistic", "huber", "poisson"],
)
def test_other_datafits(fit, seen):
    kinds = ALL if isinstance(fit, Huber) else ALL[:2]
    found = [kind(datafit=fit, penalty=L1(0.4), tolerance=1e-4)(D, seen[:2]) for kind in kinds]
    for s in found:
        assert bool(s.converged.all()) and s.proves == "duality gap"
        assert torch.allclose(cost(fit, L1(0.4), s.z, seen[:2]), cost(fit, L1(0.4), found[0].z, seen[:2]), rtol=1e-3)


def test_cox_has_a_violation_where_it_has_no_gap():
    times = X[:2].abs() + 0.1
    s = ProximalGradient(datafit=Cox(), penalty=L1(0.5), tolerance=1e-5)(D, times)
    assert s.proves == "violation" and bool(s.converged.all()) and bool((s.z != 0).any())
    assert bool((cost(Cox(), L1(0.5), s.z, times) < Cox().value(torch.zeros_like(times), times)).all())


def test_the_gap_bounds_what_is_missing():
    optimum = cost(Quadratic(), L1(0.3), CoordinateDescent(penalty=L1(0.3), tolerance=1e-12)(D, X).z, X)
    half = X.square().sum(1) / 2
    for rounds in (1, 5, 30):
        s = ProximalGradient(penalty=L1(0.3), iterations=rounds, tolerance=0.0)(D, X)
        assert bool(((cost(Quadratic(), L1(0.3), s.z, X) - optimum) / half <= s.certificate + 1e-12).all())
        assert bool((s.steps == rounds).all())


@pytest.mark.parametrize("penalty", [MCP(0.3, 6.0), SCAD(0.3, 8.0), Box(-0.1, 0.2)], ids=lambda p: type(p).__name__)
def test_penalties_without_a_gap_or_a_kernel_end_where_nothing_violates(penalty):
    s = CoordinateDescent(penalty=penalty, tolerance=1e-4)(D, X[:2])
    assert bool(s.converged.all())
    assert float(penalty.violation(s.z, (s.z @ D - X[:2]) @ D.T).max()) < 1e-3


@pytest.mark.parametrize(
    "penalty", [L1(0.3), ElasticNet(0.4, 0.7), NonNegativeL1(0.2), WeightedL1(WEIGHTS), MCP(0.5, 50.0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_does_what_the_reference_does(penalty, dtype, monkeypatch):
    d, x = D[:24].to(dtype), X.to(dtype)
    penalty = replace(penalty, weights=WEIGHTS[:24]) if isinstance(penalty, WeightedL1) else penalty
    goal = torch.full((6,), 1e-5 if dtype == torch.float32 else 1e-9, dtype=dtype)
    operands = (d @ d.T, x @ d.T, penalty, torch.zeros(6, 24, dtype=dtype), goal, 5000)
    fast, passes = inner_products.descend_quadratic(*operands)
    assert int(passes.max()) < 5000
    monkeypatch.setattr(inner_products, "can_descend", lambda gram: False)
    slow, _ = inner_products.descend_quadratic(*operands)
    values = [(z @ d - x).square().sum(1) / 2 + penalty.value(z) for z in (fast, slow)]
    assert torch.allclose(*values, rtol=1e-5 if dtype == torch.float32 else 1e-9)
    assert float(penalty.violation(fast, fast @ operands[0] - operands[1]).max()) <= 1.5 * float(goal[0])


def test_copies_of_an_atom_and_an_atom_of_zeros_do_no_harm():
    d = torch.cat([D, D[:5], torch.zeros(1, 20, dtype=D.dtype)])
    s = CoordinateDescent(penalty=L1(0.2), tolerance=1e-8)(d, X)
    assert bool(s.converged.all()) and bool((s.z[:, -1] == 0).all())
    alone = CoordinateDescent(penalty=L1(0.2), tolerance=1e-8)(D, X)
    assert torch.allclose((s.z @ d - X).square().sum(1), (alone.z @ D - X).square().sum(1), rtol=1e-5)


def wide(seed: int):
    g = torch.Generator().manual_seed(seed)
    d = torch.randn(600, 50, generator=g, dtype=torch.float64)
    y = torch.randn(1, 50, generator=g, dtype=torch.float64)
    return d, y, float((d @ y[0]).abs().max())


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_screening_leaves_out_only_what_is_zero(seed, share):
    d, y, most = wide(seed)
    exact = CoordinateDescent(penalty=L1(share * most), tolerance=1e-11, screen=False)(d, y)
    s = CoordinateDescent(penalty=L1(share * most), tolerance=1e-8)(d, y)
    assert isinstance(s, Screened) and bool(s.converged.all()) and bool(exact.converged.all())
    assert int(s.screened) <= int((exact.z == 0).sum())
    assert int(s.screened) > 0 or share < 0.5
    assert torch.allclose(s.z, exact.z, atol=1e-4)
    number, proves = certify(Atoms(d), Quadratic(), L1(share * most), s.z, y)
    assert proves == "duality gap" and float(number) <= 1e-8


def tall(alike: float):
    """120 atoms of 600 numbers that share a part, and a signal of ten of them."""
    g = torch.Generator().manual_seed(0)
    d = torch.randn(120, 600, generator=g, dtype=torch.float64)
    d += alike * torch.randn(600, generator=g, dtype=torch.float64)
    y = d[:10].sum(0, keepdim=True) + torch.randn(1, 600, generator=g, dtype=torch.float64)
    return d, y, float((d @ y[0]).abs().max())


@pytest.mark.parametrize("alike", [0.0, 30.0], ids=["on the residual alone", "by inner products in the end"])
def test_a_tall_lasso_needs_no_inner_products_unless_its_atoms_are_alike(alike, monkeypatch):
    made, real = [], working_set.descend_quadratic
    monkeypatch.setattr(working_set, "descend_quadratic", lambda *given: (made.append(len(given[0])), real(*given))[1])
    d, y, most = tall(alike)
    weights = tuple(torch.linspace(0.5, 2.0, 120).tolist())
    for penalty in (
        L1(0.1 * most),
        NonNegativeL1(0.1 * most),
        WeightedL1(weights, 0.1 * most),
        ElasticNet(0.1 * most, 0.7),
    ):
        s = CoordinateDescent(penalty=penalty, tolerance=1e-6, iterations=50_000)(d, y)
        number, proves = certify(Atoms(d), Quadratic(), penalty, s.z, y)
        assert proves == "duality gap" and float(number) <= 1e-6
    assert bool(made) == bool(alike)


def test_a_tall_problem_without_a_gap_ends_where_nothing_violates():
    d, y, most = tall(0.0)
    penalty = MCP(0.1 * most, 3.0)
    s = CoordinateDescent(penalty=penalty, tolerance=1e-7)(d, y)
    assert bool(s.converged.all()) and float(penalty.violation(s.z, (s.z @ d - y) @ d.T).max()) < 1e-6 * most


def test_from_the_largest_weight_on_nothing_is_kept():
    d, y, most = wide(0)
    assert not bool(CoordinateDescent(penalty=L1(most * 1.001))(d, y).z.any())
    assert bool(CoordinateDescent(penalty=L1(most * 0.98))(d, y).z.any())


def test_a_path_is_warm_and_each_of_its_points_a_cold_solution():
    d, y, most = wide(1)
    weights, found = path(d, y[0], CoordinateDescent(tolerance=1e-8), 8, 0.05)
    assert weights[0] == pytest.approx(most) and weights[-1] == pytest.approx(0.05 * most)
    assert not bool(found[0].z.any())
    for weight, s in list(zip(weights.tolist(), found, strict=True))[1::3]:
        cold = CoordinateDescent(penalty=L1(weight), tolerance=1e-8)(d, y)
        assert torch.allclose(cold.z, s.z, atol=1e-3)
    again = CoordinateDescent(penalty=L1(float(weights[-1])), tolerance=1e-8)(d, y, found[-1].z)
    assert int(again.steps) == 0 and bool(again.converged.all())


def test_prox_newton_screens_and_converges_on_a_wide_problem():
    d, y, _ = wide(2)
    labels = torch.sign(y)
    most = float((d @ labels[0]).abs().max()) / 2
    s = CoordinateDescent(datafit=Logistic(), penalty=L1(0.3 * most), tolerance=1e-8)(d, labels)
    assert bool(s.converged.all()) and s.proves == "duality gap" and int((s.z != 0).sum()) > 1


def test_plain_proximal_gradient_never_rises_and_momentum_is_faster():
    last = torch.full((6,), torch.inf, dtype=D.dtype)
    for rounds in range(1, 12):
        z = ProximalGradient(penalty=L1(0.2), momentum=False, iterations=rounds, tolerance=0.0)(D, X).z
        now = cost(Quadratic(), L1(0.2), z, X)
        assert bool((now <= last + 1e-12).all())
        last = now
    slow = ProximalGradient(penalty=L1(0.2), momentum=False, iterations=5000)(D, X).steps.double().mean()
    fast = ProximalGradient(penalty=L1(0.2))(D, X).steps.double().mean()
    assert 2 * fast < slow


@pytest.mark.parametrize(
    ("kind", "penalty"), [(ProximalGradient, L1(0.3)), (GraphADMM, Group(5, 0.4)), (PrimalDual, Group(5, 0.4))]
)
def test_maps_that_are_no_matrix_and_codes_of_several_dimensions(kind, penalty):
    s = kind(penalty=penalty, tolerance=1e-3)(Plain(), X[:2].unflatten(1, (4, 5)))
    flat = kind(penalty=penalty, tolerance=1e-4)(D, X[:2])
    assert s.z.shape == (2, 8, 5) and bool(s.converged.all())
    assert torch.allclose(
        cost(Quadratic(), penalty, s.z.flatten(1), X[:2]), cost(Quadratic(), penalty, flat.z, X[:2]), rtol=1e-3
    )


@pytest.mark.parametrize("kind", ALL[1:])
def test_complex_codes(kind):
    g = torch.Generator().manual_seed(3)
    d = torch.randn(12, 8, generator=g, dtype=torch.complex128)
    x = torch.randn(2, 8, generator=g, dtype=torch.complex128)
    s = kind(penalty=L1(0.5), tolerance=1e-6)(d, x)
    assert bool(s.converged.all()) and s.z.is_complex()
    assert float(L1(0.5).violation(s.z, (s.z @ d - x) @ d.mH).max()) < 0.05


def test_pieces_of_one_value_from_total_variation():
    eye = torch.eye(20, dtype=D.dtype)
    s = ProximalGradient(penalty=TV1D(0.5), tolerance=1e-10)(eye, X)
    assert torch.allclose(s.z, TV1D(0.5).prox(X, 1.0), atol=1e-6)


@pytest.mark.parametrize("rule", ["cyclic", "gs", "gsl", "gsq", "gsd"])
@pytest.mark.parametrize("fit", [Quadratic(), Logistic()], ids=["quadratic", "logistic"])
def test_every_rule_of_greedy_blocks_ends_at_the_optimum(rule, fit):
    y = X[:1] if isinstance(fit, Quadratic) else torch.sign(X[:1])
    penalty = L1(0.3 if isinstance(fit, Quadratic) else 0.15)
    s = GreedyBlocks(fit, penalty, rule=rule, block=3, tolerance=1e-7)(D, y)
    best = CoordinateDescent(fit, penalty, tolerance=1e-9)(D, y)
    assert bool(s.converged.all()) and s.proves == "duality gap"
    assert torch.allclose(cost(fit, penalty, s.z, y), cost(fit, penalty, best.z, y), rtol=1e-6)


def test_who_cannot_says_so():
    with pytest.raises(KernelError, match="proximal_gradient"):
        CoordinateDescent()(Plain(), X.unflatten(1, (4, 5)))
    with pytest.raises(KernelError, match="single coordinates, not Group"):
        CoordinateDescent(penalty=Group(2))(D, X)
    with pytest.raises(KernelError, match="not Cox"):
        CoordinateDescent(datafit=Cox())(D, X)
    with pytest.raises(KernelError, match="l1 norm"):
        GreedyBlocks(penalty=MCP())(D, X)
    with pytest.raises(KernelError, match="no rule 'best'"):
        GreedyBlocks(rule="best")(D, X)


@pytest.mark.parametrize("kind", [*ALL, GreedyBlocks])
def test_no_rows_and_rows_of_zeros(kind):
    assert kind()(D, X[:0]).z.shape == (0, 40)
    s = kind()(D, torch.zeros_like(X))
    assert not bool(s.z.any()) and bool(s.converged.all()) and int(s.steps.max()) == 0
