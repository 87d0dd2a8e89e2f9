"""Statistics: merging equals concatenation, order does not matter, the formulas, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import CalibrationError, DtypeError, MissingStatError, NonFiniteError, ShapeError
from sparseworks.core.stats import STATS, Gram, InputMoments, Stats, WeightGradient

quick = settings(deadline=None, max_examples=25)
ROWS, COLS = 3, 5
WIDTH = {"input": COLS, "output": ROWS, "layer": COLS + ROWS}


def batch(kind, tokens: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    shape = (tokens, WIDTH[kind.source]) if kind.source in WIDTH else (ROWS, COLS)
    return torch.randn(shape, generator=g)


def seen(kind, batches):
    stat = kind(ROWS, COLS)
    for x in batches:
        stat.update(x)
    return stat


def same(a, b) -> bool:
    return a.count == b.count and all(
        torch.allclose(x, b.state()[name], rtol=1e-5, atol=1e-6) for name, x in a.state().items()
    )


@pytest.mark.parametrize("kind", list(STATS), ids=STATS.names())
@quick
@given(sizes=st.lists(st.integers(0, 7), min_size=2, max_size=6), cut=st.integers(1, 5))
def test_merging_equals_concatenation_in_any_order(kind, sizes, cut):
    batches = [batch(kind, n, i) for i, n in enumerate(sizes)]
    cut = min(cut, len(batches) - 1)
    whole = seen(kind, batches)
    first, second = seen(kind, batches[:cut]), seen(kind, batches[cut:])
    first.merge(second)
    assert same(first, whole)
    assert same(seen(kind, batches[::-1]), whole)
    if kind.source in WIDTH:
        assert same(seen(kind, [torch.cat(batches)]), whole)


@pytest.mark.parametrize("kind", list(STATS), ids=STATS.names())
def test_state_can_be_stored_and_goes_on(kind):
    stored = seen(kind, [batch(kind, 4, 0)])
    state = {name: t.clone() for name, t in stored.state().items()}
    stored.update(batch(kind, 4, 1))
    again = kind(ROWS, COLS)
    again.load(state)
    again.update(batch(kind, 4, 1))
    assert same(again, stored)
    assert int(state["count"]) != again.count  # going on does not write into what was loaded
    fresh = kind(ROWS, COLS)
    fresh.load(state)
    assert all(torch.equal(t, state[name]) for name, t in fresh.state().items())


@pytest.mark.parametrize("kind", list(STATS), ids=STATS.names())
def test_refusals(kind):
    bad = batch(kind, 2, 0)
    bad[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=kind.__name__):
        kind(ROWS, COLS).update(bad)
    with pytest.raises(ShapeError, match="3x5"):
        kind(ROWS, COLS).update(torch.zeros(2, 7))
    with pytest.raises(ShapeError, match="3x5 and a 3x6"):
        kind(ROWS, COLS).merge(kind(ROWS, COLS + 1))
    with pytest.raises(ShapeError, match="saved state"):
        kind(ROWS, COLS).load(kind(ROWS + 1, COLS + 1).state())
    with pytest.raises(ShapeError, match="nothing"):
        kind(ROWS, COLS).load({"count": torch.tensor(1)})


def test_statistics_of_different_kinds_do_not_merge():
    with pytest.raises(DtypeError, match="Cannot merge Gram into InputMoments"):
        InputMoments(ROWS, COLS).merge(Gram(ROWS, COLS))  # type: ignore[arg-type]


def test_input_moments():
    x = torch.randn(50, COLS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stat = seen(InputMoments, [x[:20].reshape(4, 5, COLS), x[20:]])
    assert torch.allclose(stat.norm, (x.square().sum(0) / 50).sqrt())
    assert torch.allclose(stat.mean, x.mean(0)) and torch.allclose(stat.variance, x.var(0, correction=0))


def test_gram_some_rows_at_a_time(monkeypatch):
    x = torch.randn(9, COLS)
    whole = seen(Gram, [x])
    monkeypatch.setattr("sparseworks.core.stats._PRODUCT", 2 * COLS)
    torch.testing.assert_close(seen(Gram, [x]).total, whole.total, rtol=1e-6, atol=1e-6)


def test_gram():
    x = torch.randn(50, COLS, generator=torch.Generator().manual_seed(1))
    stat = seen(Gram, [x[:20], x[20:]])
    h = (x.T @ x).double() / 50
    assert torch.allclose(stat.matrix, h, atol=1e-6) and torch.allclose(stat.mean, x.mean(0).double(), atol=1e-7)
    change = torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(stat.error(change), (x @ change.T).double().square().mean(0), atol=1e-5)


def test_damping_keeps_dead_inputs_solvable():
    x = torch.randn(10, COLS, generator=torch.Generator().manual_seed(3))
    x[:, 2] = 0
    damped = seen(Gram, [x]).damped(0.01)
    assert damped[2, 2] > 0.9 and torch.linalg.eigvalsh(damped).min() > 0


def test_weight_gradient():
    g = [torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    stat = seen(WeightGradient, g)
    stacked = torch.stack(g).double()
    assert torch.allclose(stat.mean, stacked.mean(0)) and torch.allclose(stat.mean_square, stacked.square().mean(0))


def test_half_precision_batches_are_summed_wide():
    stat = seen(InputMoments, [torch.full((4096, COLS), 1.001, dtype=torch.bfloat16)])
    assert torch.allclose(stat.mean, torch.full((COLS,), float(torch.tensor(1.001, dtype=torch.bfloat16))).double())


def test_nothing_seen():
    for read in (lambda: Gram(ROWS, COLS).matrix, lambda: InputMoments(ROWS, COLS).norm):
        with pytest.raises(CalibrationError, match="has seen no data"):
            read()


def test_a_collection_feeds_by_source_and_names_what_is_missing():
    stats = Stats.collecting({Gram, WeightGradient}, (ROWS, COLS), site="layers.0.q")
    assert len(stats) == 2 and Gram in stats and InputMoments not in stats
    stats.feed("input", torch.ones(4, COLS))
    assert stats[Gram].count == 4 and stats[WeightGradient].count == 0
    with pytest.raises(MissingStatError, match=r"'layers.0.q': InputMoments was not gathered .* input"):
        stats[InputMoments]
    other = Stats.collecting({Gram, WeightGradient}, (ROWS, COLS))
    other.feed("input", torch.ones(2, COLS))
    stats.merge(other)
    assert stats[Gram].count == 6


def test_two_statistics_share_nothing():
    a, b = Gram(ROWS, COLS), Gram(ROWS, COLS)
    a.update(torch.ones(1, COLS))
    assert b.count == 0 and float(b.total.sum()) == 0
