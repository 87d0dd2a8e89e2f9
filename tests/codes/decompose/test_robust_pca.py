from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.codes.decompose.robust_pca import robust_pca, shrink_spectrum
from sparseworks.core.errors import BudgetError, DtypeError, NonFiniteError, ShapeError


def planted(seed=0, n=120, rank=6, share=0.05):
    g = torch.Generator().manual_seed(seed)
    low = torch.randn(n, rank, generator=g) @ torch.randn(rank, n, generator=g) / rank**0.5
    where = torch.rand(n, n, generator=g) < share
    sparse = torch.where(where, torch.randn(n, n, generator=g).sign(), 0)
    return low.double(), sparse.double()


def test_outliers_are_taken_apart_exactly_where_a_truncated_svd_cannot():
    low, sparse = planted()
    found = sw.method("robust_pca")(low + sparse)
    assert found.steps < 60 and found.rank == 6
    assert (found.low - low).norm() < 1e-5 * low.norm()
    assert ((found.sparse.abs() > 1e-3) == (sparse != 0)).all()
    u, s, v = torch.linalg.svd(low + sparse)
    assert ((u[:, :6] * s[:6]) @ v[:6] - low).norm() > 0.05 * low.norm()


def test_a_batch_is_solved_as_its_matrices_are():
    both = torch.stack([sum(planted(seed, 40, 2)) for seed in (1, 2)])
    found = robust_pca(both)
    for i in range(2):
        alone = robust_pca(both[i])
        assert torch.allclose(found.low[i], alone.low, atol=1e-4)
    assert torch.allclose(found.low + found.sparse, both, atol=1e-4)


def test_single_precision_ends_and_a_matrix_of_zeros_does_not_disturb_its_batch():
    whole = sum(planted(3, 40, 2))
    assert robust_pca(whole.float()).steps < 60
    found = robust_pca(torch.stack([torch.zeros_like(whole), whole]))
    assert not found.low[0].any() and torch.allclose(found.low[1], robust_pca(whole).low, atol=1e-4)
    with pytest.raises(DtypeError):
        robust_pca(torch.ones(4, 4, dtype=torch.long))


def test_spectra_shrink_by_the_threshold():
    m = torch.randn(5, 7, dtype=torch.float64)
    before, after = torch.linalg.svdvals(m), torch.linalg.svdvals(shrink_spectrum(m, 0.5))
    assert torch.allclose(after, (before - 0.5).clamp(min=0))


def test_bad_matrices_are_refused():
    with pytest.raises(ShapeError):
        robust_pca(torch.zeros(3))
    with pytest.raises(NonFiniteError):
        robust_pca(torch.full((2, 2), torch.nan))
    with pytest.raises(BudgetError):
        robust_pca(torch.ones(2, 2), weight=0.0)
    assert robust_pca(torch.zeros(3, 3)).error == 0
