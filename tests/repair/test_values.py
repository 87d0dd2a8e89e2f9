from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import BudgetError, MissingStatError
from sparseworks.core.pattern import Pattern
from sparseworks.core.select import select
from sparseworks.core.solver import Nothing, masked
from sparseworks.core.stats import Gram, InputMoments, Stats
from sparseworks.core.support import Support
from sparseworks.repair import BiasCorrection, LeastSquares
from sparseworks.scores import InputNorm, Magnitude


def output_error(x, weight, new, bias=None) -> float:
    return float((x @ (weight - new).T - (0 if bias is None else bias)).square().sum(dim=1).mean())


def case(layer, *, shift=0.0, seed=0):
    weight, _, x = layer(16, 32, seed=seed)
    x = x + shift
    stats = Stats.collecting({Gram, InputMoments}, (16, 32))
    stats.feed("input", x)
    support = Support.from_mask(torch.rand(16, 32, generator=torch.Generator().manual_seed(seed)) < 0.5)
    return weight, x, stats, support


def test_bias_correction_is_the_mean_of_what_is_lost(layer):
    weight, x, stats, support = case(layer, shift=1.0)
    repair = BiasCorrection()
    new = repair(weight, support, stats)
    assert torch.equal(new, masked(weight, support))
    bias = repair.bias(weight, new, stats)
    torch.testing.assert_close(bias, (x @ (weight - new).T).mean(dim=0), rtol=1e-4, atol=1e-4)
    assert output_error(x, weight, new, bias) < 0.9 * output_error(x, weight, new)


def test_without_a_bias_repair_there_is_none(layer):
    weight, _, stats, support = case(layer)
    assert Nothing().bias(weight, weight, stats) is None
    assert LeastSquares().bias(weight, masked(weight, support), stats) is None


def test_each_repair_gains_on_the_one_before(layer):
    weight, x, stats, support = case(layer, shift=0.5)
    chain = [Nothing(), BiasCorrection(), BiasCorrection(LeastSquares()), LeastSquares(intercept=True)]
    errors = []
    for repair in chain:
        new = repair(weight, support, stats)
        errors.append(output_error(x, weight, new, repair.bias(weight, new, stats)))
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert BiasCorrection(LeastSquares()).needs == {Gram, InputMoments}


def test_intercept_is_least_squares_with_a_column_of_ones(layer):
    weight, x, stats, support = case(layer, shift=0.5)
    repair = LeastSquares(damp=0.0, intercept=True)
    new = repair(weight, support, stats)
    bias = repair.bias(weight, new, stats)
    wide = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    for r, kept in enumerate(support.mask()):
        kept = torch.cat([kept, torch.tensor([True])])
        solution = torch.linalg.lstsq(wide[:, kept], x.double() @ weight[r].double()).solution
        torch.testing.assert_close(new[r, kept[:-1]].double(), solution[:-1], rtol=1e-3, atol=1e-4)
        assert bias is not None
        torch.testing.assert_close(bias[r].double(), solution[-1], rtol=1e-3, atol=1e-4)


def test_damping_shrinks_the_change(layer):
    weight, _, stats, support = case(layer)
    plain = masked(weight, support)
    moved = [float((LeastSquares(damp=d)(weight, support, stats) - plain).norm()) for d in (0.0, 0.1, 10.0)]
    assert moved[0] > moved[1] > moved[2] > 0


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), dtype=st.sampled_from([torch.float32, torch.bfloat16]), damp=st.floats(0, 1))
def test_least_squares_never_raises_the_calibrated_error(seed, dtype, damp):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 12, generator=g).to(dtype)
    stats = Stats.collecting({Gram}, (5, 12))
    stats.feed("input", torch.randn(20, 12, generator=g) @ torch.randn(12, 12, generator=g))
    support = Support.from_mask(torch.rand(5, 12, generator=g) < 0.5)
    new = LeastSquares(damp=damp)(weight, support, stats)
    assert new.dtype == dtype and bool((new[~support.mask()] == 0).all())
    error = lambda w: stats[Gram].error(w - weight)  # noqa: E731
    assert bool((error(new) <= error(masked(weight, support)) * (1 + 1e-5)).all())


@pytest.mark.parametrize(("repair", "what"), [(LeastSquares(), "Gram"), (BiasCorrection(), "InputMoments")])
def test_says_which_statistic_is_missing(repair, what):
    weight = torch.ones(2, 4)
    with pytest.raises(MissingStatError, match=what):
        new = repair(weight, Support.full((2, 4)), Stats())
        repair.bias(weight, new, Stats())


def test_refuses_negative_damping():
    with pytest.raises(BudgetError, match="damp >= 0"):
        LeastSquares(damp=-0.1)


def test_default_damping_holds_up_on_unseen_inputs_when_tokens_are_few(layer):
    weight, _, x = layer(32, 256, tokens=2000)
    seen, unseen = x[:128], x[128:]
    stats = Stats.collecting({Gram, InputMoments}, (32, 256))
    stats.feed("input", seen)
    support = select((Magnitude() * InputNorm())(weight, stats), Pattern.parse("row"), 128)
    plain, default, none = (
        output_error(unseen, weight, repair(weight, support, stats))
        for repair in (Nothing(), LeastSquares(), LeastSquares(damp=0.0))
    )
    assert default < plain < none
