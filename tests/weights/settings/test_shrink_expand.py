"""SparCL: how supports breathe, which gradients pass, and what it saves at which accuracy."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError
from sparseworks.scores import Gradient, Magnitude
from sparseworks.weights.settings import EasyExamples, ShrinkExpand, TrainingFlops


def small(density=0.25, steps=20, **train):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    method = sw.method("sparcl", density=density, train=ShrinkExpand(**{"every": 5, "extra": 0.05, **train}))
    return model, optimizer, sw.Sparsifier(model, method, optimizer, steps=steps)


def step(model, optimizer, seed):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(16, 20, generator=g), torch.randint(5, (16,), generator=g)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def test_supports_widen_for_a_task_and_are_exchanged_within_it():
    model, optimizer, run = small()
    densities = []
    for k in range(40):
        if k == 20:
            run.next_stage()
        densities.append(round(run.density, 3))
        step(model, optimizer, k)
        run.step()
    task = [0.3] * 5 + [0.25] * 15
    assert densities == pytest.approx(task * 2, abs=0.002)
    shrunk = 50  # five per cent of the entries; some of those just dropped grow again at once
    moved = {e.step: e for e in run.history}
    assert moved[5].dropped - moved[5].grown == shrunk and shrunk / 2 < moved[5].grown <= shrunk
    assert moved[10].dropped == moved[10].grown and shrunk / 2 < moved[10].grown <= shrunk
    assert (moved[20].dropped, moved[20].grown) == (0, shrunk) and set(moved) == {0, 5, 10, 15, 20, 25, 30, 35}
    run.finish()
    assert run.density == 0.25


def test_what_shrinks_away_is_what_scores_least():
    model, optimizer, run = small()
    for k in range(5):
        step(model, optimizer, k)
        if k < 4:
            run.step()
    place = run.sites[0]
    before, gradient, weight = place.mask.clone(), place.gradient().clone(), place.weight().clone()
    run.step()
    score = (weight.abs() + gradient.abs()).masked_fill(~before, -1)
    stay = torch.zeros(800, dtype=torch.bool)
    stay[score.flatten().argsort(descending=True)[: round(0.2 * 800)]] = True
    assert bool(place.mask.flatten()[stay].all()) and run.method.score == Magnitude() + Gradient()
    assert torch.equal(place.weight().flatten()[stay], weight.flatten()[stay])


def test_only_the_largest_gradients_of_kept_weights_pass():
    model, optimizer, run = small(gradients=0.1)
    before, mask = [p.weight().clone() for p in run.sites], [p.mask.clone() for p in run.sites]
    step(model, optimizer, 0)
    for place, old, kept in zip(run.sites, before, mask, strict=True):
        moved, gradient = place.weight() != old, place.gradient()
        assert int(moved.sum()) == round(0.1 * place.site.size) and not moved[~kept].any()
        dense = ((old - place.weight()) / 0.05)[moved]
        assert torch.allclose(dense, gradient[moved], rtol=1e-3)
    assert int((run.sites[0].gradient() != 0).sum()) == 80


def test_which_gradients_pass_is_decided_again_every_few_steps_and_with_every_change():
    model, optimizer, run = small(gradients=0.1, again=3)
    passed = []
    for k in range(10):
        before = run.sites[0].weight().clone()
        step(model, optimizer, k)
        passed.append(run.sites[0].weight() != before)
        run.step()
    alike = [torch.equal(a, b) for a, b in pairwise(passed)]
    assert alike == [
        True,
        True,
        False,
        True,
        False,
        False,
        True,
        True,
        False,
    ]  # again at 3, 6, 9; a change after step 5


def test_extremes_are_refused():
    with pytest.raises(BudgetError, match="no room"):
        small(density=0.97)
    for wrong in ({"gradients": 0.0}, {"again": 0}):
        with pytest.raises(BudgetError, match="gradients"):
            ShrinkExpand(**wrong)


def test_sparse_gradients_and_fewer_examples_save_five_sixths_of_the_flops(tasks):
    """At density 0.25 with gradients of 0.2 and 30 % of the examples removed early; the model still learns its task."""
    part = tasks[0]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sw.Sparsifier(model, sw.method("sparcl", train=ShrinkExpand(every=32)), optimizer, steps=160)
    flops, easy, epochs, seen = TrainingFlops(run, gradients=0.2), EasyExamples(len(part.x)), 20, 0
    for epoch in range(epochs):
        if epoch in (2, 4, 6, 8):
            easy.remove(int(0.3 * len(part.x) / 4))
        for some in easy.left[torch.randperm(len(easy.left), generator=torch.Generator().manual_seed(epoch))].split(32):
            optimizer.zero_grad()
            out = model(part.x[some])
            nn.functional.cross_entropy(out, part.y[some]).backward()
            optimizer.step()
            easy.saw(some, out.argmax(1) == part.y[some])
            run.step()
            seen += len(some)
    dense = 3 * 2 * (64 * 128 + 128 * 10) * len(part.x) * epochs
    assert flops.dense == 3 * 2 * (64 * 128 + 128 * 10) * seen < 0.8 * dense
    assert 5 < dense / flops.total < 6
    with torch.no_grad():
        assert float((model(part.x_test).argmax(1) == part.y_test).float().mean()) > 0.97
