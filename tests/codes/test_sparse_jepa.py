from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

import sparseworks as sw
from sparseworks.codes.sparse_jepa import GroupedMap, sparse_jepa
from sparseworks.core.errors import BudgetError, DtypeError, NonFiniteError, ShapeError


def patches(rows=200):
    images = torch.tensor(load_digits(return_X_y=True)[0][:rows] / 16, dtype=torch.float32)
    return images.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)


def test_columns_of_groups_go_to_exactly_zero_while_the_prediction_improves():
    x = patches()
    plain = sparse_jepa(x, 0.0, steps=60, batch=16, rate=3e-3)
    sparse = sw.method("sparse_jepa")(x, 3.0, steps=60, batch=16, rate=3e-3)
    assert plain.groups.zeros == 0 and 0.3 < sparse.groups.zeros < 1
    for found in (plain, sparse):
        assert sum(found.loss[-10:]) < 0.7 * sum(found.loss[:10])
        assert found.features(x).shape == (200, 32)
        assert float(found.features(x).std(0).min()) > 1e-4, "collapsed"


def test_the_proximal_step_is_that_of_the_norm_of_a_column():
    layer = GroupedMap(3, 2, 4)
    before = layer.weight.detach().clone()
    layer.shrink(0.4)
    size = before.norm(dim=1)
    assert torch.allclose(layer.weight.norm(dim=1), (size - 0.4).clamp(min=0), atol=1e-6)
    # No neighbour of the result does better on ||u - w||^2 / 2 + 0.4 sum ||u_j||.
    cost = lambda u: (u - before).square().sum() / 2 + 0.4 * u.norm(dim=1).sum()  # noqa: E731
    least = cost(layer.weight.detach())
    g = torch.Generator().manual_seed(0)
    assert all(cost(layer.weight.detach() + 0.05 * torch.randn(2, 4, 3, generator=g)) >= least for _ in range(50))


def test_groups_read_only_their_latents():
    layer = GroupedMap(3, 2, 4)
    with torch.no_grad():
        layer.weight[0, :, 1] = 0
    z = torch.randn(5, 3)
    other = z.clone()
    other[:, 1] += 1
    assert torch.equal(layer(z)[:, :4], layer(other)[:, :4]) and not torch.equal(layer(z)[:, 4:], layer(other)[:, 4:])


def test_runs_follow_the_seed_and_leave_the_global_one_alone():
    x = patches(20)
    state = torch.random.get_rng_state()
    a, b, c = (sparse_jepa(x, steps=2, batch=4, seed=s).loss for s in (0, 0, 1))
    assert a == b != c and torch.equal(state, torch.random.get_rng_state())


def test_double_precision_is_kept():
    found = sparse_jepa(patches(4).double(), steps=2, width=8, groups=2, latents=8)
    assert found.features(patches(4).double()).dtype is torch.float64


def test_bad_operands_are_refused():
    x = patches(4)
    with pytest.raises(ShapeError):
        sparse_jepa(x[:, :1])
    with pytest.raises(NonFiniteError):
        sparse_jepa(x * torch.nan)
    with pytest.raises(DtypeError):
        sparse_jepa((9 * x).long())
    with pytest.raises(BudgetError):
        sparse_jepa(x, groups=5)
    with pytest.raises(BudgetError):
        sparse_jepa(x, -1.0)
