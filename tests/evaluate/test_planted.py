"""Planted tickets: the target is exact, it survives planting, and what pruners find of it is told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.evaluate import circle, deeper, hats, helix, plant, planted_data, relu_unit
from sparseworks.stream import sites
from sparseworks.weights.enforce import dropped_masks, impose, keep_support

TARGETS = {"relu": relu_unit(), "circle": deeper(circle(30), 1), "helix": deeper(helix(30), 1)}


def error(task, planted):
    x, y = planted_data(task, 2000, noise=0.0)
    with torch.no_grad():
        out = planted.outputs(x)
    return float((out.argmax(1) != y).float().mean() if task == "circle" else (out - y).square().mean())


def test_hats_are_exact_at_their_knots():
    (w1, b1), (w2, b2) = hats(torch.cos, -1.0, 2.0, 7)
    x = torch.linspace(-1, 2, 7).unsqueeze(1)
    assert torch.allclose((x @ w1.T + b1).relu() @ w2.T + b2, x.cos(), atol=1e-5)
    with pytest.raises(BudgetError):
        hats(torch.cos, 0.0, 1.0, 1)


@pytest.mark.parametrize("task, most", [("relu", 1e-8), ("circle", 0.03), ("helix", 3e-4)])
def test_the_planted_subnetwork_alone_solves_the_task(task, most):
    planted = plant(TARGETS[task], 100)
    assert error(task, planted) > 10 * most  # the network around it is random
    impose(planted.model, dropped_masks(planted.model, sites(planted.model), planted.supports))
    assert error(task, planted) < most
    assert planted.recovery(planted.supports) == 1.0 and planted.density < 0.1


def test_pruners_miss_the_ticket_and_single_shots_collapse_where_synflow_does_not():
    planted = plant(TARGETS["circle"], 100)
    x, y = planted_data("circle", 1000)
    rates, whole = {}, {}
    for name in ("random", "magnitude_global", "snip", "synflow"):
        method = sw.method(name, density=planted.density / 4)
        found = sw.prune(
            plant(TARGETS["circle"], 100).model, method, [(x, y)], progress=False,
            loss=lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]),
        )  # fmt: skip
        rates[name] = planted.recovery(found.supports)
        whole[name] = min(s.count for s in found.supports.values())
    assert rates["random"] < 0.1 and all(rate < 0.5 for rate in rates.values()), rates
    assert whole["synflow"] > 0 and whole["synflow"] >= whole["magnitude_global"], whole


def test_iterative_pruning_finds_more_of_the_ticket_than_gradients_and_chance_but_not_the_ticket():
    """At the planted density, two plantings: IMP 0.16 and 0.17, GraSP 0.11 and 0.09, Edge-Popup 0.03, chance 0.03 and 0.04.

    One-shot magnitude finds as much as IMP, 0.16 and 0.17: planted entries are larger than the weights around them.
    """
    x, y = planted_data("circle", 1000)
    density = plant(TARGETS["circle"], 100).density

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def train(model, lap=None, optimizer=None, step=lambda: None):
        optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=1e-3)
        g = torch.Generator().manual_seed(0)
        for _ in range(60):
            at = torch.randint(len(x), (64,), generator=g)
            optimizer.zero_grad()
            loss(model, (x[at], y[at])).backward()
            optimizer.step()
            step()

    def pruned(name):
        planted = plant(TARGETS["circle"], 100)
        method = sw.method(name, density=density)
        if name == "imp":
            found = sw.cycles(planted.model, method, train, steps=60, seed=0, progress=False).supports
        elif name == "edge_popup":
            optimizer = torch.optim.SGD(planted.model.parameters(), lr=0.1, momentum=0.9)
            run = sw.Sparsifier(planted.model, method, optimizer, steps=60)
            train(planted.model, None, optimizer, run.step)
            found = run.finish()
        else:
            found = sw.prune(planted.model, method, [(x, y)], progress=False, loss=loss).supports
        return planted.recovery(found)

    rates = {name: pruned(name) for name in ("imp", "grasp", "edge_popup", "random")}
    assert rates["imp"] > 1.3 * rates["grasp"] and rates["grasp"] > 1.5 * rates["random"], rates
    assert rates["imp"] > 3 * rates["edge_popup"] and rates["imp"] < 0.5, rates


def test_rounds_end_better_than_one_cut_and_as_much_training_but_with_no_more_of_the_ticket():
    """At the planted density, 60 steps a round, three seeds: 0.73 right against 0.51 (0.46 is the largest class); of the ticket 0.15 and 0.16.

    With 400 steps a round: IMP 0.80, fine-tuned from round to round 0.88, one cut 0.58.
    """
    seed, steps, target = 1, 60, TARGETS["circle"]
    (x, y), (x_test, y_test) = planted_data("circle", 2000, seed=seed), planted_data("circle", 2000, noise=0.0, seed=99)
    planted = plant(target, 100, seed)

    def train(model, lap=None, times=1):
        del lap
        optimizer, g = torch.optim.Adam(model.parameters(), lr=1e-3), torch.Generator().manual_seed(seed)
        handle = keep_support(optimizer, model, sites(model), cut) if times > 1 else None
        for _ in range(times * steps):
            at = torch.randint(len(x), (64,), generator=g)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[at]), y[at]).backward()
            optimizer.step()
        if handle:
            handle.remove()

    @torch.no_grad()
    def right(model):
        return float((model(x_test).argmax(1) == y_test).float().mean())

    iterative = plant(target, 100, seed).model
    method = sw.method("imp_finetune", density=planted.density)
    rounds = sw.cycles(iterative, method, train, steps=steps, seed=0, progress=False)
    once = plant(target, 100, seed).model
    train(once)
    cut = sw.prune(once, sw.method("magnitude_global", density=planted.density), progress=False).supports
    train(once, times=len(rounds.rounds) - 1)
    assert right(iterative) > right(once) + 0.15
    assert abs(planted.recovery(rounds.supports) - planted.recovery(cut)) < 0.05


def test_what_does_not_fit_is_refused():
    with pytest.raises(BudgetError, match="cannot hold"):
        plant(circle(10), 5)
    with pytest.raises(BudgetError, match="relu, circle and helix"):
        planted_data("square", 3)
    with pytest.raises(ShapeError):
        plant(circle(10), 30).recovery({})
