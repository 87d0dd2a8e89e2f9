from __future__ import annotations

import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sparseworks.codes.numerics.matrices import as_csr
from sparseworks.codes.numerics.svd_update import UpdatedSVD, _residual
from sparseworks.core.errors import BudgetError, ShapeError


def random(rows, columns, seed, density=0.08):
    return sp.random(rows, columns, density=density, random_state=seed)


def dense(matrix):
    return torch.from_numpy(matrix.toarray())


def low(svd):
    u, s, v = svd.factors
    return (u * s) @ v.T


def zha_simon(matrix, rank):
    """What an update equals: the leading triplets of the low-rank matrix with what was added, made dense."""
    return torch.linalg.svdvals(matrix)[:rank]


def orthonormal(svd):
    u, _, v = svd.factors
    eye = torch.eye(u.shape[1], dtype=u.dtype)
    return max(float((u.T @ u - eye).abs().max()), float((v.T @ v - eye).abs().max()))


@pytest.mark.parametrize("settle", [1, 16])
def test_updates_equal_the_dense_ones(settle):
    svd = UpdatedSVD.of(random(80, 50, 0), 12, settle_every=settle)
    before = low(svd)
    for step in range(4):
        columns, rows = random(before.shape[0], 6, 10 + step), random(5, before.shape[1] + 6, 20 + step)
        svd.add_columns(columns)
        wanted = zha_simon(torch.cat([before, dense(columns)], 1), 12)
        assert torch.allclose(svd.factors[1], wanted, rtol=0, atol=1e-10)
        before = low(svd)
        svd.add_rows(rows)
        wanted = zha_simon(torch.cat([before, dense(rows)]), 12)
        assert torch.allclose(svd.factors[1], wanted, rtol=0, atol=1e-10)
        before = low(svd)
        left, right = random(before.shape[0], 3, 30 + step), random(before.shape[1], 3, 40 + step)
        svd.add_low_rank(left, right)
        wanted = zha_simon(before + dense(left) @ dense(right).T, 12)
        assert torch.allclose(svd.factors[1], wanted, rtol=0, atol=1e-10)
        before = low(svd)
    assert orthonormal(svd) < 1e-11


@given(st.integers(0, 50), st.integers(1, 12))
def test_the_basis_of_the_residual_is_orthonormal_and_orthogonal_to_what_was_there(seed, new):
    svd = UpdatedSVD.of(random(60, 30, seed, 0.2), 8)
    u = svd.factors[0]
    e = dense(random(60, new, seed + 1, 0.2))
    c, turn, r = _residual(svd._u, as_csr(e))
    q = e @ turn - u @ (c @ turn)
    assert torch.allclose(u.T @ q, torch.zeros(1, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(q.T @ q, torch.eye(q.shape[1], dtype=torch.float64), atol=1e-9)
    assert torch.allclose(u @ c + q @ r, e, atol=1e-9)


class Work(TorchDispatchMode):
    """Multiplications of all matrix products, those of a sparse matrix by what it stores, and the largest dense matrix that was made."""

    def __init__(self):
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            a, b = args[-2:]
            sparse = a.layout is not torch.strided
            self.products += a.values().numel() * b.shape[1] if sparse else a.shape[0] * a.shape[1] * b.shape[1]
        if isinstance(found, torch.Tensor) and found.layout is torch.strided and found.dim() == 2:
            self.largest = max(self.largest, found.numel())
        return found


def dense_update(u, s, e):
    """Zha and Simon with the residual made dense: how it is done without sparsity."""
    c = u.T @ e
    q, r = torch.linalg.qr(e - u @ c)
    core = torch.cat([torch.cat([torch.diag(s), c], 1), torch.cat([torch.zeros_like(c).T, r], 1)])
    f, s, _ = torch.linalg.svd(core, full_matrices=False)
    k = u.shape[1]
    return torch.cat([u, q], 1) @ f[:, :k], s[:k]


@pytest.mark.parametrize("seed", [0, 1])
def test_sparse_columns_take_a_part_of_the_work_of_a_dense_update_and_no_dense_residual(seed):
    """Tall matrices at a hundredth of density; 20 times fewer multiplications than the dense update, its QR not even counted."""
    rows, rank, new, times = 6000, 16, 16, 6
    g = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(rows, rank, generator=g, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(40, rank, generator=g, dtype=torch.float64))[0]
    s = torch.arange(rank, 0, -1.0, dtype=torch.float64)
    svd = UpdatedSVD.from_factors(u, s, v)
    ours, theirs = Work(), Work()
    for step in range(times):
        e = as_csr(random(rows, new, 100 * seed + step, 0.01))
        with ours:
            svd.add_columns(e)
        with theirs:
            u, s = dense_update(u, s, e.to_dense())
        assert torch.allclose(svd.factors[1], s, rtol=0, atol=1e-10)
    assert 20 * ours.products < theirs.products
    assert ours.largest < rows  # nothing of the size of rows x new


@pytest.mark.parametrize("seed", range(3))
def test_the_basis_is_orthonormal_to_twelve_digits(seed):
    """Of columns that are not nearly dependent; the test above has those too."""
    svd = UpdatedSVD.of(random(400, 60, seed, 0.05), 20)
    u, e = svd.factors[0], dense(random(400, 12, seed + 50, 0.05))
    c, turn, _ = _residual(svd._u, as_csr(e))
    q = e @ turn - u @ (c @ turn)
    assert q.shape == (400, 12)
    assert float((u.T @ q).abs().max()) < 1e-12
    assert float((q.T @ q - torch.eye(12, dtype=q.dtype)).abs().max()) < 1e-12


def test_nothing_new_changes_nothing():
    svd = UpdatedSVD.of(random(40, 20, 0, 0.3), 5)
    u, s, _ = svd.factors
    svd.add_columns(torch.zeros(40, 3))
    assert torch.allclose(svd.factors[1], s) and svd.factors[2].shape == (23, 5)
    svd.add_columns(u[:, :2] * 0.0 + u[:, :2])  # within what is known: no direction is added
    assert orthonormal(svd) < 1e-11


def test_sizes_that_do_not_fit_are_refused():
    svd = UpdatedSVD.of(random(40, 20, 0), 5)
    with pytest.raises(ShapeError):
        svd.add_columns(random(39, 2, 0))
    with pytest.raises(ShapeError):
        svd.add_low_rank(random(40, 2, 0), random(20, 3, 0))
    with pytest.raises(BudgetError):
        UpdatedSVD.of(random(40, 20, 0), 21)
    with pytest.raises(ShapeError):
        UpdatedSVD.from_factors(torch.zeros(4, 2), torch.zeros(2), torch.zeros(4, 3))
