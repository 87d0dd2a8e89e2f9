"""What is decided beforehand: units across sites, rounds that nest, budgets that cannot be shared out."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.budget import Mass
from sparseworks.core.errors import BudgetError, PatternError
from sparseworks.core.pattern import Pattern, Tile
from sparseworks.core.schedule import Rounds
from sparseworks.core.stats import Gram, InputMoments, WeightGradient
from sparseworks.stream import sites
from sparseworks.weights import decide, prune
from sparseworks.weights.decide import evidence_needs, streamed_needs
from sparseworks.weights.prune import reseeded
from sparseworks.weights.show import Shown


def squared(model, batch):
    return model(batch).square().mean()


def quiet(model, method, data=None, **options):
    return prune(model, method, data, progress=False, loss=squared, **options)


def test_what_is_gathered_when():
    wanda, snip = sw.method("wanda"), sw.method("snip")
    assert streamed_needs(wanda) == {InputMoments} and evidence_needs(wanda) == frozenset()
    assert streamed_needs(snip) == frozenset() and evidence_needs(snip) == {WeightGradient}
    across = sw.method("wanda_ls", pattern="global")
    assert streamed_needs(across) == {Gram} and evidence_needs(across) == {InputMoments}
    assert evidence_needs(sw.method("magnitude", allocate="owl")) == {InputMoments}
    assert evidence_needs(sw.method("magnitude", allocate="dp")) == frozenset()
    assert Gram in evidence_needs(sw.method("sparsegpt", allocate="dp"))


def test_equal_units_compete_across_sites_and_unequal_ones_do_not(tower):
    blocks = Pattern(unit=Tile(4, 4), across=True)
    found = quiet(tower(), sw.method("magnitude", pattern=blocks, density=0.25))
    assert all(Pattern(unit=Tile(4, 4)).admits(s) for s in found.supports.values())
    units = sum(s.size for s in found.supports.values()) // 16
    assert sum(s.count for s in found.supports.values()) == 16 * round(0.25 * units)
    with pytest.raises(PatternError, match="equal units"):
        quiet(tower(), sw.method("magnitude", pattern=Pattern(unit=Tile(1, None), across=True)))


def test_rounds_only_ever_drop(tower, batches, monkeypatch):
    seen: list[dict] = []
    real = decide._round

    def watched(*args):
        seen.append(real(*args))
        return seen[-1]

    monkeypatch.setattr(decide, "_round", watched)
    for method in (sw.method("snip", schedule=Rounds(5)), sw.method("snip", pattern="row", schedule=Rounds(5))):
        seen.clear()
        found = quiet(tower(), method.with_(density=0.2), batches)
        assert len(seen) == 5
        for early, late in pairwise(seen):
            assert all(not bool((late[n] & ~early[n]).any()) for n in late)
        assert sum(s.count for s in found.supports.values()) == round(
            0.2 * sum(s.size for s in found.supports.values())
        )
        once = quiet(tower(), method.with_(density=0.2, schedule=Rounds(1)), batches)
        assert any(found.supports[n] != once.supports[n] for n in once.supports)


def test_budgets_that_do_not_fit_the_pattern(tower, batches):
    with pytest.raises(BudgetError, match="whole model"):
        quiet(tower(), sw.method("wanda", pattern="global", budget=Mass(0.9)), batches)
    with pytest.raises(BudgetError, match="has no rounds"):
        quiet(tower(), sw.method("snip", pattern="2:4", schedule=Rounds(3)), batches)


def test_scored_budgets_are_taken_site_by_site(tower, batches):
    found = quiet(tower(), sw.method("wanda", budget=Mass(0.8)), batches)
    assert len({round(r.density, 2) for r in found.rows}) > 1 and all(0 < r.density < 1 for r in found.rows)


def test_costs_price_the_budget(tower):
    model = tower()
    cost = lambda name, kept: 4.0 * kept  # noqa: E731
    found = quiet(model, sw.method("magnitude", budget=sw.core.budget.Bytes(4096.0)), cost=cost)
    assert sum(r.count for r in found.rows) <= 1024 and sum(r.count for r in found.rows) > 1000


def test_seeds_reach_every_random_part():
    assert reseeded(sw.method("random"), 5).score.seed == 5
    mixed = sw.method("magnitude", score=sw.method("random").score * sw.method("magnitude").score)
    assert reseeded(mixed, 2).score.a.seed == 2 and reseeded(mixed, 2).score.b == mixed.score.b
    assert reseeded(sw.method("wanda"), 7) == sw.method("wanda")


def test_lines_go_to_the_caller_or_to_the_error_stream(capsys):
    heard: list[str] = []
    Shown(True, heard.append).say("one")
    Shown(False).say("two")
    Shown(True).say("[three]")
    assert heard == ["one"] and capsys.readouterr().err == "[three]\n"


def test_a_stack_of_one_kind_of_block_is_not_needed():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    data = [torch.randn(4, 8, generator=torch.Generator().manual_seed(0))]
    assert list(quiet(model, "wanda", data).supports) == ["0", "2"]


def test_names_of_slices_are_names_and_not_sets_of_characters():
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    name = "0.in_proj_weight[q]"
    assert name not in quiet(model, "random", skip=[name]).supports
    assert [s.name for s in sites(model, include=[name])] == [name]
