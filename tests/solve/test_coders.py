"""Pursuits and thresholds beside what all pursuits must do (`check_pursuit`): budgets, starts, sizes that are chosen, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.budget import Count, Density, Residual
from sparseworks.core.errors import BudgetError, KernelError
from sparseworks.solve.coders import HTP, IHT, MP, NSTHTFB, OMP, CoSaMP, GradientPursuit, Splicing, Thresholding
from sparseworks.solve.maps import Atoms, Cosine, Fourier, Sampled
from sparseworks.solve.penalties import CEL0, L0, L1, Half
from sparseworks.testing.pursuit import planted


@settings(max_examples=15)
@given(share=st.floats(0.001, 0.9), seed=st.integers(0, 50), noise=st.floats(0, 1))
def test_omp_with_a_residual_takes_as_few_atoms_as_leave_no_more(share, seed, noise):
    d, _, y = planted(signals=6, atoms=40, features=20, seed=seed)
    y = y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)
    found = OMP(Residual(share))(d, y)
    assert bool(found.converged.all()) and float(found.certificate.max()) <= share
    for i, k in enumerate(found.steps.tolist()):
        if k:
            assert float(OMP(Count(k - 1))(d, y[i : i + 1]).certificate) > share


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_signals_of_one_batch_stop_where_each_is_met(dtype):
    d, _, _ = planted(dtype=dtype)
    y = torch.stack([d[0], d[1] + 2 * d[2], torch.zeros_like(d[0]), d[3] - 2 * d[4] + 3 * d[5]])
    found = OMP(Count(6))(d, y)
    assert found.steps.tolist() == [1, 2, 0, 3] and bool(found.converged.all())
    assert found.codes().kept().sum(1).tolist() == [1, 2, 0, 3]


def test_omp_caps_a_residual_and_takes_many_signals_in_parts(monkeypatch):
    d, _, y = planted(signals=50, dtype=torch.float32)
    whole = OMP(Residual(1e-6), most=3)(d, y)
    assert int(whole.steps.max()) == 3 and not bool(whole.converged.any())
    monkeypatch.setattr("sparseworks.solve.coders.omp._AT_ONCE", 16 * len(d))
    torch.testing.assert_close(OMP(Residual(1e-6), most=3)(d, y).z, whole.z)


@pytest.mark.parametrize("kind", [MP, GradientPursuit])
def test_greedy_coders_stop_at_a_residual_and_work_with_complex_maps(kind):
    a = Fourier(32, 2, torch.float64)
    codes = torch.zeros(1, 33, dtype=torch.complex128)
    codes[0, 8], codes[0, 20] = 2j, 1.0 - 1j
    found = kind(Residual(1e-4), rounds=300)(a, a(codes))
    assert bool(found.converged.all()) and float(found.certificate) <= 1e-4
    seen = IHT(budget=Count(2), rounds=500)(a, a(codes))
    torch.testing.assert_close(seen.z, codes, atol=1e-4, rtol=0)


def test_matching_pursuit_may_take_an_atom_again_and_gradient_pursuit_needs_fewer_rounds():
    d, z, y = planted()
    slow, quick = MP(Count(4), rounds=1000)(d, y), GradientPursuit(Count(4), rounds=1000)(d, y)
    assert bool((slow.steps > 4).any()) and int(quick.steps.sum()) < int(slow.steps.sum())
    torch.testing.assert_close(quick.z, z, atol=1e-6, rtol=0)


def test_iht_finds_missing_samples_by_products_alone_and_from_a_start():
    seen = torch.rand(64, generator=torch.Generator().manual_seed(0)) < 0.7
    a = Sampled(seen, torch.float64) @ Cosine((64,), torch.float64)
    codes = torch.zeros(2, 64, dtype=torch.float64)
    codes[0, [3, 17]], codes[1, [30, 5]] = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 1.0]).double()
    coder = IHT(budget=Count(2))
    found = coder(a, a(codes))
    torch.testing.assert_close(found.z, codes, atol=1e-5, rtol=0)
    assert int(coder(a, a(codes), start=codes).steps.max()) == 0


@pytest.mark.parametrize("coder", [HTP(budget=Count(5)), NSTHTFB(budget=Count(5)), CoSaMP(budget=Count(5))])
def test_loops_start_from_given_codes(coder):
    d, z, y = planted()
    assert int(coder(d, y, start=z).steps.max()) == 0


def test_null_space_tuning_needs_atoms_that_span():
    d, _, y = planted(atoms=20)
    with pytest.raises(KernelError, match="do not span"):
        NSTHTFB()(d, y)
    d[:, 5] = 0
    with pytest.raises(KernelError, match="do not span"):
        NSTHTFB()(d.repeat(4, 1), y)


def test_null_space_tuning_without_the_sparsity():
    d, z, y = planted()
    for growth in (1, 3):
        found = NSTHTFB(budget=Residual(0.0), growth=growth)(d, y)
        torch.testing.assert_close(found.z, z, atol=1e-8, rtol=0)
        assert bool(found.converged.all())


def test_splicing_finds_the_best_subset_where_omp_does_not():
    better = 0
    for seed in range(12):
        g = torch.Generator().manual_seed(seed)
        common = torch.randn(1, 12, generator=g, dtype=torch.float64)
        d = torch.randn(10, 12, generator=g, dtype=torch.float64) + common
        y = (d[1] - d[4] + 0.8 * d[7] + 0.1 * torch.randn(12, generator=g, dtype=torch.float64)).unsqueeze(0)
        subsets = torch.tensor(list(itertools.combinations(range(10), 3)))
        best = min(float((y[0] - d[s].T @ torch.linalg.lstsq(d[s].T, y[0]).solution).square().sum()) for s in subsets)
        ours = float((y - Splicing(Count(3), exchanges=3)(d, y).z @ d).square().sum())
        greedy = float((y - OMP(Count(3))(d, y).z @ d).square().sum())
        assert ours >= best - 1e-9
        better += (ours <= best * (1 + 1e-6)) - (greedy <= best * (1 + 1e-6))
    assert better >= 3


@pytest.mark.parametrize("criterion", ["gic", "ebic", "bic"])
def test_splicing_chooses_its_size_signal_by_signal(criterion):
    d, z, _ = planted(signals=10, atoms=60, features=200)
    z[:5] = torch.where(z[:5].abs() >= z[:5].abs().sort(1).values[:, -2:-1], z[:5], 0)
    y = z @ d
    y = y + 0.02 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    found = Splicing(Count(8), choose=criterion)(d, y)
    sizes = (found.z != 0).sum(1)
    wrong = float((sizes - torch.tensor([2] * 5 + [4] * 5)).abs().double().mean())
    assert wrong <= {"ebic": 0.0, "gic": 0.5, "bic": 1.5}[criterion]
    assert bool(((found.z != 0) >= (z != 0)).all())


@pytest.mark.parametrize("penalty", [L0(0.05), CEL0(0.05), Half(0.05), L1(0.1)], ids=repr)
def test_thresholding_ends_where_the_penalty_is_not_violated(penalty):
    d, _, y = planted()
    found = Thresholding(penalty=penalty, rounds=5000, tolerance=1e-9)(d, y)
    assert bool(found.converged.all())
    gradient = (found.z @ d - y) @ d.T
    assert float(penalty.violation(found.z, gradient).max()) < 1e-5
    value = (found.z @ d - y).square().sum(1) / 2 + penalty.value(found.z)
    assert bool((value < y.square().sum(1) / 2).all())


@pytest.mark.parametrize(
    ("coder", "match"),
    [
        (OMP(Density(0.1)), "Count or by Residual"),
        (OMP(Count(49)), "only 48"),
        (MP(Count(97)), "only 96"),
        (IHT(budget=Residual(0.1)), "fixed number"),
        (Splicing(Residual(0.1)), "choose='gic'"),
    ],
)
def test_budgets_that_do_not_fit_are_refused(coder, match):
    d, _, y = planted()
    with pytest.raises(BudgetError, match=match):
        coder(d, y)


def test_refusals_say_why():
    with pytest.raises(BudgetError, match="not by 'cp'"):
        Splicing(choose="cp")
    assert "float32 and float64" in str(OMP().refuses(Atoms(torch.eye(3, dtype=torch.complex64))))
    assert OMP().refuses(Atoms(torch.eye(3))) is None
    assert MP().refuses(Cosine((4,))) is None


def test_an_atom_that_was_cut_off_leaves_the_support_of_gradient_pursuit():
    """Row by row as it is written down: the best atom joins those above 0, a step along their correlations, z = max(z, 0)."""
    g = torch.Generator().manual_seed(0)
    d = torch.nn.functional.normalize(1 + torch.randn(30, 5, generator=g, dtype=torch.float64), dim=1)
    y, cut = torch.randn(300, 5, generator=g, dtype=torch.float64), 0
    expected = torch.zeros(300, 30, dtype=torch.float64)
    for row, z in zip(y, expected, strict=True):
        for _ in range(7):
            c = d @ (row - z @ d)
            if float(c.max()) <= 1e-12:
                break
            on = z > 1e-15
            on[c.argmax()] = True
            step = (on * c) @ d
            z += (step @ (row - z @ d)) / (step @ step) * on * c
            cut += int((z < 0).sum())
            z.clamp_(min=0)
    found = GradientPursuit(Count(7), rounds=7, nonnegative=True)(d, y).z
    assert cut > 10
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", [MP, GradientPursuit])
def test_values_may_be_held_at_zero_or_above(kind):
    d = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    z = torch.tensor([[3.0, -5.0, 0.0, 1.0, -2.0, 0.5]])
    found = kind(Count(3), nonnegative=True)(d, z @ d)
    assert torch.allclose(found.z, torch.tensor([[3.0, 0.0, 0.0, 1.0, 0.0, 0.5]]), atol=1e-5)
    assert torch.allclose(kind(Count(3))(d, z @ d).z, torch.tensor([[3.0, -5.0, 0.0, 0.0, -2.0, 0.0]]), atol=1e-5)


@pytest.mark.parametrize("penalty", [L0(0.1), CEL0(0.1), Half(0.1), L1(0.1)])
def test_atoms_that_are_all_zero_are_never_used(penalty):
    found = Thresholding(penalty=penalty)(torch.zeros(5, 4), torch.randn(2, 4))
    assert not found.z.any()


@pytest.mark.parametrize("coder", [kind(budget=Count(3)) for kind in (CoSaMP, Splicing, NSTHTFB)])
def test_codes_whose_squares_overflow_are_found_all_the_same(coder):
    atoms, signals = _tiny_atoms()
    found = coder(atoms, signals)
    assert found.z.isfinite().all() and not found.certificate.isnan().any()
    assert ((found.z.abs() > 0).sum(1) <= 3).all() and torch.allclose(found.z @ atoms, signals, atol=1e-3)


def _tiny_atoms():
    """Atoms of length 1e-20 in single precision: codes are 1e20, and their squares beyond what it holds."""
    g = torch.Generator().manual_seed(0)
    atoms = torch.randn(20, 16, generator=g)
    atoms = 1e-20 * atoms / atoms.norm(dim=1, keepdim=True)
    codes = torch.zeros(4, 20)
    codes[:, :3] = 1e20 * torch.randn(4, 3, generator=g).sign()
    return atoms, codes @ atoms
