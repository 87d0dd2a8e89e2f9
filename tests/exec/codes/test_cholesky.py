from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.codes import Codes
from sparseworks.core.errors import BudgetError, DtypeError, KernelError, ShapeError
from sparseworks.exec.codes import BatchCholesky, decode
from sparseworks.exec.native import features

CHOLESKY = importlib.import_module("sparseworks.exec.codes.cholesky")


@pytest.fixture(params=["reference", *features()["built"]])
def kernels(request, monkeypatch, running):
    """The reference, and the compiled kernels of every instruction set."""
    if request.param == "reference":
        monkeypatch.setattr(CHOLESKY, "native", lambda: None)
        yield
        return
    with running(request.param):
        yield


def problem(signals, atoms, features, seed=0, dtype=torch.float32):
    """Inner products of unit atoms, and of noise with them."""
    g = torch.Generator().manual_seed(seed)
    d = torch.nn.functional.normalize(torch.randn(atoms, features, generator=g, dtype=torch.float64), dim=1)
    x = torch.randn(signals, features, generator=g, dtype=torch.float64)
    return (d @ d.T).to(dtype), (x @ d.T).to(dtype)


def direct(gram, right, chosen):
    """Each signal's equations on their own, in double precision."""
    g = gram.double()[chosen[:, :, None], chosen[:, None, :]]
    return torch.linalg.solve(g, right.double().gather(1, chosen))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("signals", "atoms", "k"), [(0, 3, 2), (1, 1, 1), (15, 20, 7), (16, 13, 13), (37, 64, 17)])
def test_coefficients_solve_each_signals_equations(kernels, signals, atoms, k, dtype):
    gram, right = problem(signals, atoms, 2 * atoms, dtype=dtype)
    chosen = torch.rand(signals, atoms, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :k]
    factors = BatchCholesky(gram, right, k)
    assert factors.solve().shape == (signals, 0)
    for n in range(k):
        assert factors.append(chosen[:, n]).all()
        if n % 4 == 0 or n == k - 1:
            found = factors.solve()
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), direct(gram, right, chosen[:, : n + 1]), rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not features()["built"], reason="no compiled extension")
def test_the_extension_computes_by_itself(monkeypatch):
    def forbidden(*_args, **_options):
        raise AssertionError("torch's solver ran")

    gram, right = problem(5, 6, 12)
    want = direct(gram, right, torch.tensor([[0, 3]]).expand(5, 2))
    monkeypatch.setattr(torch.linalg, "solve_triangular", forbidden)
    factors = BatchCholesky(gram, right, 2)
    for atom in (0, 3):
        factors.append(torch.full((5,), atom))
    torch.testing.assert_close(factors.solve().double(), want, rtol=1e-3, atol=1e-4)


def test_dependent_atoms_are_refused_one_signal_at_a_time(kernels):
    gram, right = problem(20, 9, 30)
    gram[3], gram[:, 3] = gram[5], gram[:, 5]  # atom 3 is atom 5 again
    gram[3, 3] = gram[3, 5] = gram[5, 3] = gram[5, 5]
    factors = BatchCholesky(gram, right, 4)
    one = torch.ones(20, dtype=torch.long)
    assert factors.append(5 * one).all()
    mixed = torch.where(torch.arange(20) % 3 == 0, 3, 2)
    mixed[7] = -1
    taken = factors.append(mixed)
    assert torch.equal(taken, (mixed == 2))
    assert factors.append(8 * one).all()
    found = factors.solve()
    chosen = torch.tensor([[5, 2, 8]]).expand(20, 3)
    torch.testing.assert_close(found[taken].double(), direct(gram, right, chosen)[taken], rtol=1e-3, atol=1e-4)
    assert (found[~taken, 1] == 0).all()
    rest = direct(gram, right, chosen[:, [0, 2]])[~taken]
    torch.testing.assert_close(found[~taken][:, [0, 2]].double(), rest, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1.0, 0.0])
def test_a_pivot_that_is_no_positive_number_is_refused(kernels, bad):
    gram, right = problem(3, 4, 8)
    gram[1, 1] = bad
    factors = BatchCholesky(gram, right, 2)
    assert factors.append(torch.tensor([1, 0, -1])).tolist() == [False, True, False]
    found = factors.solve()
    torch.testing.assert_close(
        found, torch.stack([torch.tensor(0.0), right[1, 0] / gram[0, 0], torch.tensor(0.0)])[:, None]
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 1000))
def test_residuals_are_orthogonal_to_the_chosen_atoms(signals, k, seed):
    gram, right = problem(signals, 12, 40, seed)
    factors = BatchCholesky(gram, right, k)
    chosen = torch.rand(signals, 12, generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :k]
    for n in range(k):
        factors.append(chosen[:, n])
    left = right - decode(Codes(factors.solve(), chosen, 12), gram)
    assert float(left.gather(1, chosen).abs().max()) < 1e-3
    assert float(right.gather(1, chosen).abs().max()) > 1e-2  # before the fit they were not


def test_matching_pursuit_finds_the_supports_of_scikit_learn(kernels):
    peer = pytest.importorskip("sklearn.linear_model").orthogonal_mp_gram
    gram, right = problem(23, 80, 40, seed=3)
    factors, chosen, left = BatchCholesky(gram, right, 9), torch.empty(23, 0, dtype=torch.long), right
    for _ in range(9):
        new = left.abs().scatter(1, chosen, -1).argmax(1)
        assert factors.append(new).all()
        chosen = torch.cat([chosen, new[:, None]], 1)
        left = right - decode(Codes(factors.solve(), chosen, 80), gram)
    found = torch.zeros(23, 80).scatter(1, chosen, factors.solve())
    want = torch.from_numpy(peer(gram.double().numpy(), right.double().T.numpy(), n_nonzero_coefs=9)).T
    assert torch.equal(found != 0, want != 0)
    torch.testing.assert_close(found, want.float(), rtol=1e-3, atol=1e-4)


def test_refusals():
    gram, right = problem(3, 4, 8)
    factors = BatchCholesky(gram, right, 1)
    for atoms in (torch.tensor([0, 1]), torch.tensor([0, 1, 4]), torch.tensor([0, 1, -2]), torch.tensor([0.0, 1, 2])):
        with pytest.raises(ShapeError):
            factors.append(atoms)
    factors.append(torch.tensor([0, 1, 2]))
    with pytest.raises(BudgetError):
        factors.append(torch.tensor([0, 1, 2]))
    with pytest.raises(ShapeError):
        BatchCholesky(gram[:3], right, 1)
    with pytest.raises(ShapeError):
        BatchCholesky(gram, right[:, :3], 1)
    with pytest.raises(DtypeError):
        BatchCholesky(gram.half(), right.half(), 1)
    with pytest.raises(DtypeError):
        BatchCholesky(gram, right.double(), 1)
    with pytest.raises(BudgetError):
        BatchCholesky(gram, right, 5)


@pytest.mark.skipif(not features()["built"], reason="no compiled extension")
def test_written_factors_are_refused():
    factors = BatchCholesky(*problem(3, 4, 8), 2)
    factors._state._chosen.fill_(9)
    with pytest.raises(KernelError):
        factors.append(torch.tensor([0, 1, 2]))
