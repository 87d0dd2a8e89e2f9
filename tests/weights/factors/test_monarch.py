"""Monarch: the projection is exact where the weight is one, and no better than low rank where it is not."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.weights.factors import Monarch
from sparseworks.weights.factors.monarch import monarch

SQUARE = {"monarch": {"blocks": 8}}


def fit(weight, form=SQUARE, density=0.25):
    return sw.factorise_matrix(weight, sw.method("monarch", form=form, density=density))


def low_rank(weight, density=0.25):
    return sw.factorise_matrix(weight, sw.method("svd", density=density)).dense().detach()


def distance(a, b):
    return float((a.detach() - b.detach()).square().sum() / b.square().sum())


def test_the_operator_is_the_sum_over_its_pairs():
    left, right = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 5, 6)  # k, i, p, rank / k, i, rank, s
    operator = monarch(left, right)
    pairs = torch.einsum("kipr,kirs->pkis", left, right).reshape(12, 12)
    assert torch.allclose(operator.dense(), pairs, atol=1e-5)
    x = torch.randn(7, 12)
    assert torch.allclose(operator(x), x @ pairs.T, atol=1e-4)


@pytest.mark.parametrize(("shape", "blocks", "density"), [((64, 64), 8, 0.25), ((32, 64), 4, 0.5), ((96, 48), 4, 0.3)])
def test_monarch_matrices_come_back(shape, blocks, density):
    form, method = Monarch(blocks), sw.method("monarch", form=Monarch(blocks), density=density)
    words = int(density * shape[0] * shape[1])
    weight = form.start(shape, method, words, torch.Generator().manual_seed(0)).dense().detach()
    again = fit(weight, form, density)
    assert distance(again.dense(), weight) < 1e-10
    assert distance(low_rank(weight, density), weight) > 0.05
    assert again.stored.numbers <= words and again.stored.bits == 0
    assert again.stored.numbers == blocks * sum(shape) * (words // (blocks * sum(shape)))


def test_the_fourier_transform_comes_back_with_its_columns_in_another_order():
    """Column j * m + i goes to i * m + j: then it is a Monarch matrix, while low rank of equal size keeps almost nothing."""
    n, m = 64, 8
    grid = torch.arange(n)
    dft = torch.exp(-2j * torch.pi * torch.outer(grid, grid) / n) / n**0.5
    turned = dft[:, grid.view(m, m).T.flatten()]
    for part in (turned.real, turned.imag):
        weight = part.float()
        # real and imaginary part of a product of two rank-1 pairs have rank 2
        assert distance(fit(weight, density=0.5).dense(), weight) < 1e-9
        assert distance(low_rank(weight), weight) > 0.2
    pairs = turned.view(m, m, m, m).permute(1, 2, 0, 3)
    values = torch.linalg.svdvals(pairs)
    assert float(values[..., 1:].abs().max()) < 1e-5  # each pair has rank 1: 2 n^1.5 numbers are enough
    whole = torch.linalg.svdvals(turned)
    assert float(whole[m:].square().sum() / whole.square().sum()) > 0.86


def test_on_a_gaussian_matrix_it_is_as_good_as_low_rank_and_no_better():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    ours, theirs = distance(fit(weight).dense(), weight), distance(low_rank(weight), weight)
    assert 0.55 < ours < 0.7 and abs(ours - theirs) < 0.03


def test_four_blocks_at_half_the_numbers_and_one_block_is_low_rank():
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    four = fit(weight, Monarch(4), 0.5)
    assert four.stored.numbers == 4 * 96 * 2 and distance(four.dense(), weight) < 0.5
    assert torch.allclose(fit(weight, Monarch(1), 0.5).dense(), low_rank(weight, 0.5), atol=1e-4)


def test_sizes_that_do_not_fit():
    with pytest.raises(ShapeError, match="4 blocks do not divide a 6 x 8"):
        fit(torch.randn(6, 8), Monarch(4))
    with pytest.raises(BudgetError, match="which has 1024"):
        fit(torch.randn(64, 64), density=0.2)
    with pytest.raises(BudgetError, match="at least one block"):
        Monarch(0)
