"""DSFormer: dense times group top-t sparse factors, fitted, and trained straight through a dense shadow."""

from __future__ import annotations

import copy

import pytest
import torch

import sparseworks as sw
from sparseworks.core.errors import BudgetError, MissingStatError, ModelError, PatternError, ShapeError
from sparseworks.weights.factors import DenseSparse, Sparse, close_factors, factorise, open_factors, open_sites
from sparseworks.weights.factors.shadow import Shadow

STF = sw.method("dsformer", form=DenseSparse(rows=16), density=0.5)


def groups(operator) -> torch.Tensor:
    return operator.parts[0].support.mask().T.reshape(operator.in_features, -1, 4).sum(dim=2)


def test_it_is_dense_times_group_sparse_within_its_budget():
    weight = torch.randn(32, 48, generator=torch.Generator().manual_seed(0))
    operator = sw.factorise_matrix(weight, STF)
    sparse, dense = operator.parts
    atoms = dense.blocks.shape[2]
    assert dense.blocks.shape == (2, 16, atoms) and sparse.out_features == 2 * atoms and atoms % 4 == 0
    assert bool((groups(operator) == 1).all())
    assert operator.stored.numbers == 32 * atoms + 2 * atoms * 48 // 4 and operator.stored.bits == 2 * atoms * 48
    larger = (32 + 2 * 48 * (1 / 4 + 1 / 16)) * (atoms + 4)
    assert operator.stored.words() <= 0.5 * weight.numel() < larger
    for r in range(2):  # each block of rows is its own basis times its own coefficients
        own = dense.blocks[r] @ sparse.dense()[r * atoms : (r + 1) * atoms]
        assert torch.allclose(operator.dense()[r * 16 : (r + 1) * 16], own, atol=1e-5)


def test_a_weight_of_this_form_is_found_again_and_alternation_helps():
    torch.manual_seed(0)
    made = DenseSparse(rows=16).start((16, 200), STF, 16 * 200 // 2, torch.Generator().manual_seed(0)).dense().detach()

    def error(iterations):
        fitted = sw.factorise_matrix(made, STF.with_(form=DenseSparse(rows=16, iterations=iterations)))
        return float((fitted.dense().detach() - made).square().sum() / made.square().sum())

    low = sw.factorise_matrix(made, sw.method("svd", density=0.5)).dense().detach()
    distance = float((low - made).square().sum() / made.square().sum())
    assert error(10) < 0.5 * error(0) and error(10) < 0.85 * distance


def opened(tower):
    model = tower()
    factorise(model, STF, skip=["first", "last"], progress=False)
    return model, open_factors(model)


def test_opening_and_closing_change_nothing(tower, batches):
    model, found = opened(tower)
    before = model(batches[0])
    assert [s.name for s in found] == [f"blocks.{i}.{leaf}.parts.0" for i in range(3) for leaf in ("up", "down")]
    assert found == open_sites(model) and all(isinstance(model.get_submodule(s.name), Shadow) for s in found)
    with pytest.raises(MissingStatError, match=r"blocks\.0\.up\.parts\.0"):
        close_factors(model, {})
    supports = {
        s.name: sw.select(s.read(model).abs(), STF.pattern) for s in found
    }  # what was kept is what is largest: all else is zero
    close_factors(model, supports)
    assert not open_sites(model) and torch.allclose(model(batches[0]), before, atol=1e-5)
    with pytest.raises(ModelError, match="has a sparse factor"):
        open_factors(tower())


def test_straight_through_is_the_formula(tower, batches):
    """S <- S - lr g(top-t of S), with the gradient at the projection, and D by its own gradient; against a loop by hand."""
    model, found = opened(tower)
    by_hand = copy.deepcopy(model)
    batches = [b / b.std() for b in batches]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sparsifier = sw.Sparsifier(model, STF, optimizer, steps=6)
    shadows = {s.name: by_hand.get_submodule(s.name).matrix.detach().clone() for s in found}
    for step in range(6):
        optimizer.zero_grad()
        model(batches[step % 3]).square().mean().backward()
        optimizer.step()
        sparsifier.step()
        for name, shadow in shadows.items():
            top = shadow.abs().T.reshape(shadow.shape[1], -1, 4).argmax(2, keepdim=True)
            mask = torch.zeros(shadow.shape[1], shadow.shape[0] // 4, 4).scatter_(2, top, 1.0).flatten(1).T
            by_hand.get_submodule(name).matrix.data.copy_(shadow * mask)
        for p in by_hand.parameters():
            p.grad = None
        by_hand(batches[step % 3]).square().mean().backward()
        held = {id(by_hand.get_submodule(name).matrix) for name in shadows}
        with torch.no_grad():
            for name, shadow in shadows.items():
                shadow -= 0.05 * by_hand.get_submodule(name).matrix.grad
            for p in by_hand.parameters():
                if id(p) not in held:
                    p -= 0.05 * p.grad
    for place in sparsifier.sites:
        assert torch.allclose(place.weight(), shadows[place.name], atol=1e-4)
    supports = sparsifier.finish()
    trained = model(batches[0])
    assert bool(torch.isfinite(trained).all())
    close_factors(model, supports)
    assert torch.allclose(model(batches[0]), trained, atol=1e-5)
    assert all(bool((groups(model.get_submodule(f"blocks.{i}.up")) == 1).all()) for i in range(3))
    assert isinstance(model.blocks[0].up.parts[0], Sparse)


def test_supports_move_and_the_budget_stays(tower, batches):
    model, found = opened(tower)
    before = {s.name: s.read(model) != 0 for s in found}
    kept = {s.name: int(before[s.name].sum()) for s in found}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    sparsifier = sw.Sparsifier(model, STF, optimizer, steps=30)
    for step in range(30):
        optimizer.zero_grad()
        (model(batches[step % 3]) - batches[step % 3][..., :4].sin()).square().mean().backward()
        optimizer.step()
        sparsifier.step()
    supports = sparsifier.finish()
    assert {n: s.count for n, s in supports.items()} == kept
    assert any(bool((supports[n].mask() != mask).any()) for n, mask in before.items())


def test_training_must_be_prepared(tower):
    model = tower()
    with pytest.raises(ModelError, match=r"use `sparseworks\.factorise`, then `open_factors\(model\)`"):
        sw.Sparsifier(model, STF, torch.optim.SGD(model.parameters(), lr=0.1), steps=3)


def test_sizes_that_do_not_fit():
    weight = torch.randn(32, 48)
    with pytest.raises(ShapeError, match="do not divide a 32 x 48"):
        sw.factorise_matrix(weight, STF.with_(form=DenseSparse(rows=10)))
    with pytest.raises(BudgetError, match="with a basis of 4"):
        sw.factorise_matrix(weight, STF.with_(density=0.05))
    with pytest.raises(PatternError, match=r"keeps t of every g coefficients of a column"):
        sw.factorise_matrix(weight, STF.with_(pattern="1:4"))
