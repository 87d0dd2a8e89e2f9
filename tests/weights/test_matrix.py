"""One matrix: published orders of size, each method against its own baseline, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import sparseworks as sw
from sparseworks.core.budget import Mass, Threshold
from sparseworks.core.errors import (
    BudgetError,
    CalibrationError,
    DtypeError,
    MissingStatError,
    NonFiniteError,
    PatternError,
    ShapeError,
)
from sparseworks.core.stats import HessianGradient, InputMoments, Stats, SynapticFlow
from sparseworks.weights import matrix
from sparseworks.weights.matrix import relative_error


@pytest.fixture(scope="module")
def layer():
    """256 x 256 weights and 4096 inputs: features correlate through 64 causes, channels have unequal scales."""
    g = torch.Generator().manual_seed(0)
    causes = torch.randn(4096, 64, generator=g) @ torch.randn(64, 256, generator=g) / 8
    x = (causes + 0.35 * torch.randn(4096, 256, generator=g)) * torch.randn(256, generator=g).mul(0.7).exp()
    return torch.randn(256, 256, generator=g) / 16, x


def error(weight, new, x) -> float:
    return float(((new - weight) @ x.T).square().sum() / (weight @ x.T).square().sum())


def error_of(layer, method, **changes) -> float:
    weight, x = layer
    return error(weight, sw.prune_matrix(weight, sw.method(method, **changes), inputs=x)[0], x)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"density": 0.5}, {"magnitude": 0.032, "wanda": 0.010, "sparsegpt": 0.004}),
        ({"pattern": "2:4"}, {"magnitude": 0.078, "wanda": 0.032, "sparsegpt": 0.012}),
    ],
)
def test_published_orders_of_size(layer, changes, expected):
    found = {name: error_of(layer, name, **changes) for name in expected}
    assert found["sparsegpt"] < 0.7 * found["wanda"] and found["wanda"] < 0.7 * found["magnitude"], found
    for name, size in expected.items():
        assert size / 3 < found[name] < 3 * size, found


@pytest.mark.parametrize(
    ("better", "baseline"),
    [
        ("wanda", "magnitude_row"),  # the score
        ("wanda_ls", "wanda"),  # the repair
        ("sparsegpt", "wanda"),
        ("obs", "wanda"),
        ("admm", "wanda_ls"),  # the support moves with the values
        ("magnitude", "random"),
    ],
)
@pytest.mark.parametrize("changes", [{"density": 0.5}, {"density": 0.25}, {"pattern": "2:4"}])
def test_each_method_beats_its_own_baseline(layer, better, baseline, changes):
    assert error_of(layer, better, **changes) < 0.9 * error_of(layer, baseline, **changes)


def test_wanda_is_wanda(layer):
    weight, x = layer
    new, support = sw.prune_matrix(weight, sw.method("wanda", density=0.5), inputs=x)
    score = weight.abs() * x.norm(dim=0)
    cut = score.sort(dim=1).values[:, 128:129]
    assert torch.equal(support.mask(), score >= cut) and torch.equal(new, weight * (score >= cut))
    whole = sw.prune_matrix(weight, sw.method("wanda", density=0.5, pattern="tensor"), inputs=x)[1]
    assert whole != support and whole.count == support.count


def test_sparsegpt_is_the_column_by_column_sweep():
    """Against the definition written out: remove one column, solve again for all columns to its right."""
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 8, generator=g, dtype=torch.float64)
    x = torch.randn(64, 8, generator=g, dtype=torch.float64) @ torch.randn(8, 8, generator=g, dtype=torch.float64)
    new, support = sw.prune_matrix(weight, sw.method("sparsegpt", pattern="2:4"), inputs=x)
    h = x.float().T @ x.float() / 64
    h = h.double() + 0.01 * h.double().diagonal().mean() * torch.eye(8)
    w, mask = weight.clone(), torch.ones(4, 8, dtype=torch.bool)
    for j in range(8):
        inverse = torch.linalg.inv(h[j:, j:])
        if j % 4 == 0:
            pivots = torch.stack([torch.linalg.inv(h[k:, k:])[0, 0] for k in range(j, j + 4)])
            saliency = w[:, j : j + 4].square() / pivots
            mask[:, j : j + 4].scatter_(1, saliency.argsort(dim=1)[:, :2], False)
        lost = torch.where(mask[:, j], 0.0, w[:, j])
        w[:, j:] -= lost.unsqueeze(1) * inverse[0] / inverse[0, 0]
    assert torch.equal(support.mask(), mask)
    # A row that the sweep leaves worse than masking alone keeps its masked weights: our only departure.
    swept, masked = (((v * mask - weight) @ x.T).square().sum(1) for v in (w, weight))
    expected = torch.where((swept < masked).unsqueeze(1), w * mask, weight * mask)
    assert (swept < masked).sum() >= 3 and torch.allclose(new, expected, atol=1e-5)


def test_a_name_is_enough_and_nothing_is_changed(layer):
    weight, x = layer
    before = weight.clone()
    new, support = sw.prune_matrix(weight, "wanda", inputs=x.reshape(16, 256, 256))
    assert torch.equal(weight, before) and new.dtype == weight.dtype
    assert support.mask().dtype == torch.bool and torch.all(new[~support.mask()] == 0)


def test_gradients_feed_gradient_scores(layer):
    weight, _ = layer
    g = torch.randn(3, 256, 256, generator=torch.Generator().manual_seed(2))
    _, snip = sw.prune_matrix(weight, "snip", gradients=g)
    score = (weight * g.mean(0)).abs()
    assert score[snip.mask()].min() >= score[~snip.mask()].max()
    _, movement = sw.prune_matrix(weight, "movement", gradients=g)
    moved = -(weight * g).double().mean(0)
    assert moved[movement.mask()].min() >= moved[~movement.mask()].max() and movement != snip


def test_other_statistics_come_as_they_are(layer):
    weight, _ = layer
    for name, kind in (("grasp", HessianGradient), ("synflow", SynapticFlow)):
        with pytest.raises(MissingStatError, match=rf"{kind.__name__}.*stats="):
            sw.prune_matrix(weight, name)
        stat = kind(256, 256)
        stat.update(torch.rand(256, 256))
        assert sw.prune_matrix(weight, name, stats=[stat])[1].density == 0.5


def test_budgets_that_look_at_scores(layer):
    weight, x = layer
    _, cut = sw.prune_matrix(weight, sw.method("magnitude", budget=Threshold(0.05)))
    assert torch.equal(cut.mask(), weight.abs() >= 0.05)
    _, held = sw.prune_matrix(weight, sw.method("wanda", budget=Mass(0.8)), inputs=x)
    score = weight.abs() * x.norm(dim=0)
    share = (score * held.mask()).sum(1) / score.sum(1)
    assert torch.all(share >= 0.8 - 1e-6) and len(set(held.kept(sw.core.pattern.ROW).tolist())) > 1


def test_relative_error_is_that_of_the_outputs(layer):
    weight, x = layer
    for name in ("sparsegpt", "wanda_bias"):
        stats = Stats([k(256, 256) for k in sw.method(name).needs])
        stats.feed("input", x)
        from sparseworks.weights.matrix import solve_matrix

        solved = solve_matrix(weight, stats, sw.method(name), count=256 * 128)
        if name == "sparsegpt":
            assert solved.error == pytest.approx(error(weight, solved.weight, x), rel=1e-3)
        else:
            plain = relative_error(weight, solved.weight, stats)
            assert solved.bias is not None and solved.error < plain
    independent = torch.randn(20000, 16, generator=torch.Generator().manual_seed(3))
    moments = InputMoments(4, 16)
    moments.update(independent)
    w = torch.randn(4, 16)
    new = w * (torch.rand(4, 16) > 0.5)
    assert relative_error(w, new, Stats([moments])) == pytest.approx(error(w, new, independent), rel=0.1)
    assert relative_error(w, new, Stats()) == pytest.approx(float((new - w).square().sum() / w.square().sum()))


@given(
    rows=st.integers(1, 24), cols=st.sampled_from([4, 6, 8, 12, 16]), density=st.floats(0, 1), seed=st.integers(0, 99),
    at_once=st.sampled_from([1, 40, 100]), score=st.sampled_from(["magnitude", "wanda"]), in_place=st.booleans(),
    pattern=st.sampled_from(["row", "1:2", "2:2", "4:4", "fan-in", "1:2:1"]), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_some_rows_at_a_time_are_all_rows_at_once(rows, cols, density, seed, at_once, score, in_place, pattern, dtype):
    g = torch.Generator().manual_seed(seed)
    weight, moments = torch.randn(rows, cols, generator=g).to(dtype), InputMoments(rows, cols)
    moments.update(torch.randn(32, cols, generator=g))
    assume((not rows % 2 or pattern != "1:2:1") and (not cols % 4 or pattern != "4:4"))
    method = sw.method(score, pattern=pattern) if ":" in pattern else sw.method(score, pattern=pattern, density=density)
    count, stats = round(density * weight.numel()), Stats([moments], site="here")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(matrix, "_AT_ONCE", 1 << 30)
        whole = matrix.solve_matrix(weight, stats, method, count=count)
        patched.setattr(matrix, "_AT_ONCE", at_once)
        given = weight.clone()
        parts = matrix.solve_matrix(given, stats, method, count=count, in_place=in_place)
        step = matrix.stripe(weight.shape, method)
    assert step is not None and parts.support == whole.support and torch.equal(parts.weight, whole.weight)
    assert parts.error == pytest.approx(whole.error, rel=1e-9)
    assert torch.equal(given, parts.weight if in_place and step < rows else weight)


@pytest.mark.parametrize(
    "method",
    [
        sw.method("wanda", pattern="tensor"), sw.method("sparsegpt"), sw.method("wanda_bias"), sw.method("wanda_ls"),
        sw.method("magnitude_global"), sw.method("random"), sw.method("snip"), sw.method("obs"),
    ],
    ids=lambda m: m.name,
)  # fmt: skip
def test_rows_that_belong_together_are_solved_together(method):
    assert matrix.stripe((64, 64), method) is None


@given(
    rows=st.integers(1, 9), cols=st.integers(1, 24), density=st.floats(0, 1), seed=st.integers(0, 99),
    name=st.sampled_from(["magnitude", "wanda", "wanda_ls", "sparsegpt", "obs"]),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_counts_are_exact_and_zeros_are_zeros(rows, cols, density, seed, name):
    g = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(rows, cols, generator=g), torch.randn(7, cols, generator=g)
    new, support = sw.prune_matrix(weight, sw.method(name, density=density), inputs=x)
    assert support.count == round(density * rows * cols)
    assert torch.all(new[~support.mask()] == 0) and torch.isfinite(new).all()


def test_refusals(layer):
    weight, x = layer
    wanda = sw.method("wanda")
    with pytest.raises(MissingStatError, match=r"'wanda'.*InputMoments.*`inputs=`"):
        sw.prune_matrix(weight, wanda)
    with pytest.raises(MissingStatError, match=r"'snip'.*`gradients=`"):
        sw.prune_matrix(weight, "snip", inputs=x)
    with pytest.raises(CalibrationError, match="no tokens"):
        sw.prune_matrix(weight, wanda, inputs=x[:0])
    with pytest.raises(ShapeError, match="tokens x 256"):
        sw.prune_matrix(weight, wanda, inputs=x[:, :5])
    with pytest.raises(ShapeError, match="gradients"):
        sw.prune_matrix(weight, "snip", gradients=weight[:5])
    with pytest.raises(ShapeError, match="matrix"):
        sw.prune_matrix(weight[0], wanda, inputs=x)
    with pytest.raises(DtypeError, match="int8"):
        sw.prune_matrix(weight.to(torch.int8), wanda, inputs=x)
    with pytest.raises(DtypeError, match="inputs"):
        sw.prune_matrix(weight, wanda, inputs=x.long())
    with pytest.raises(NonFiniteError, match="NaN"):
        sw.prune_matrix(weight, wanda, inputs=torch.where(x > 2, torch.nan, x))
    with pytest.raises(NonFiniteError, match=r"weight.*\[0, 0\]"):
        sw.prune_matrix(torch.full((4, 4), torch.inf), "magnitude")
    with pytest.raises(PatternError):
        sw.prune_matrix(weight, sw.method("wanda", pattern="2:5"), inputs=x)
    with pytest.raises(BudgetError):
        sw.prune_matrix(weight, sw.method("wanda", density=1.5), inputs=x)
