"""ARMOR: the loss never rises, ends far below its 2:4 start and below SparseGPT's 2:4, and the wrappers are counted."""

from __future__ import annotations

import copy
from itertools import combinations, pairwise

import pytest
import torch

import sparseworks as sw
from sparseworks.core.errors import BudgetError, PatternError, ShapeError
from sparseworks.core.select import select
from sparseworks.core.stats import InputMoments
from sparseworks.weights.factors import Wrapped
from sparseworks.weights.factors.armor import Core, normalised, tiled, untiled

ARMOR = sw.method("armor")


def core(layer, block) -> Core:
    rows, cols, plain = normalised(layer.weight.double())
    assert torch.allclose(rows.unsqueeze(1) * plain * cols, layer.weight.double())
    assert torch.allclose(plain.norm(dim=1), torch.ones(len(plain), dtype=torch.float64))
    moments = layer.stats[InputMoments]
    support = select(ARMOR.score(plain, layer.stats), ARMOR.pattern)
    return Core(plain.float(), support, moments.square / moments.count, block, ARMOR.pattern)


def test_the_loss_never_rises_and_the_core_keeps_its_pattern(layer):
    made = core(layer, 32)
    losses = list(made.descend(300, 10, 10**9, 0.0, 0))
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(losses))
    assert losses[-1] < 0.75 * losses[0] and losses[-1] == pytest.approx(made.loss(), rel=1e-5)
    mask = untiled(made.mask)
    assert bool((mask.view(-1, 4).sum(1) == 2).all()) and not bool(untiled(made.values)[~mask].any())


def test_a_group_gets_the_best_values_on_the_best_support(made_up):
    """Against trying all six supports of the drawn groups by hand, with the weighted error of the whole matrix."""
    made = core(made_up, 32)
    made.fit_wrappers()
    before = copy.deepcopy(made)
    made.fit_groups(1, torch.Generator().manual_seed(0))
    changed = (made.values != before.values).nonzero()
    r, c, i, j = changed[0].tolist()
    q = j // 4 * 4
    weights = before.h.sqrt()[c].double()
    basis = before.left[r, :, i].double()
    rows = before.right[c, q : q + 4].double() * weights
    rest = before.values.clone()
    rest[r, c, i, q : q + 4] = 0
    target = (before.weight[r, c] - before.left[r] @ rest[r, c] @ before.right[c]).double() * weights
    found = {}
    for t in combinations(range(4), 2):
        design = torch.stack([torch.outer(basis, rows[k]).flatten() for k in t], dim=1)
        values = torch.linalg.lstsq(design, target.flatten().unsqueeze(1)).solution
        found[t] = float((target.flatten() - (design @ values).squeeze(1)).square().sum()), values.flatten()
    best = min(found, key=lambda t: found[t][0])
    group = made.values[r, c, i, q : q + 4]
    assert tuple(group.nonzero().flatten().tolist()) == best
    assert torch.allclose(group[list(best)].double(), found[best][1], rtol=1e-3, atol=1e-5)


def test_wrappers_are_the_least_squares_solution(made_up):
    made = core(made_up, 32)
    made.fit_wrappers()
    best = made.loss()
    for seed in range(4):
        torch.manual_seed(seed)
        other = copy.deepcopy(made)
        other.right = made.right + 1e-2 * torch.randn_like(made.right)
        assert other.loss() > best


def test_closer_than_sparsegpt(layer):
    """Relative output error of the layer: ARMOR below SparseGPT's 2:4, and far below its own start."""
    operator = sw.factorise_matrix(layer.weight, ARMOR.with_(form=Wrapped(steps=1200)), stats=layer.stats)
    start = sw.factorise_matrix(layer.weight, ARMOR.with_(form=Wrapped(steps=0)), stats=layer.stats)
    sparsegpt, _ = sw.prune_matrix(layer.weight, sw.method("sparsegpt", pattern="2:4"), stats=layer.stats)
    error = layer.error(operator.dense())
    assert error < 0.97 * layer.error(sparsegpt) and error < 0.55 * layer.error(start.dense())
    out, width = layer.weight.shape
    assert operator.stored.numbers == out * width // 2 + 32 * (out + width) and operator.stored.bits == out * width


def test_without_steps_it_is_the_pruned_weight(made_up):
    operator = sw.factorise_matrix(made_up.weight, ARMOR.with_(form=Wrapped(steps=0)), stats=made_up.stats)
    mask = operator.parts[1].support.mask()
    assert torch.allclose(operator.dense(), made_up.weight * mask, atol=1e-5)
    assert torch.equal(untiled(tiled(made_up.weight, 32)), made_up.weight)


def test_it_stops_when_nothing_improves(made_up):
    made = core(made_up, 32)
    assert len(list(made.descend(3000, 10, patience=20, tolerance=0.5, seed=0))) <= 4


def test_sizes_that_do_not_fit(made_up):
    with pytest.raises(ShapeError, match="Blocks of 48 must divide"):
        sw.factorise_matrix(made_up.weight, ARMOR.with_(form=Wrapped(block=48)), stats=made_up.stats)
    with pytest.raises(PatternError, match="keeps N of every M inputs"):
        sw.factorise_matrix(made_up.weight, ARMOR.with_(pattern="row"), stats=made_up.stats)
    with pytest.raises(BudgetError, match="Leave the density out"):
        ARMOR.with_(density=0.6)
