"""Phases, penalties, shrinkage, thresholds and noise: what one step does, beside the formula written out."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.schedule import Annealing, Constant, Harmonic
from sparseworks.stream import sites
from sparseworks.weights.train import (
    Alternate,
    GrowingL2,
    LearnedThreshold,
    Penalised,
    Regrow,
    RipeStop,
    SoftShrink,
    Variational,
)
from sparseworks.weights.train.penalty import hyper_sparse
from sparseworks.weights.train.variational import divergence, log_alpha


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))


def loss(model, seed=0):
    x = torch.randn(12, 16, generator=torch.Generator().manual_seed(seed))
    return (model(x) - x[:, :8].sin()).square().mean()


def step(model, optimizer, run, seed=0):
    optimizer.zero_grad()
    loss(model, seed).backward()
    optimizer.step()
    return run.step()


def started(method, steps=20, lr=0.1, **options):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, **options)
    return model, optimizer, sw.Sparsifier(model, method, optimizer, steps=steps)


def test_phases_of_a_hundred_epochs_are_those_of_the_paper():
    phases = [Alternate().sparse(epoch / 100) for epoch in range(100)]
    wanted = [False] * 10 + ([True] * 5 + [False] * 5) * 7 + [False] * 5 + [True] * 15
    assert phases == wanted


def test_dense_and_sparse_phases_take_turns_and_what_returns_starts_from_zero():
    model, optimizer, run = started(sw.method("ac_dc", density=0.25), steps=40)
    kept, size = [], sum(s.size for s in sites(model))
    for i in range(40):
        event = step(model, optimizer, run, i)
        kept.append(run.density)
        if event and event.grown:
            assert sum(int((s.read(model) == 0).sum()) for s in sites(model)) == event.grown
    assert {round(k * size) for k in kept} == {size, round(0.25 * size)}
    assert sum(a != b for a, b in pairwise(kept)) == 15
    assert run.density == 0.25 and all(k == 0.25 for k in kept[-6:])


def test_soft_shrinkage_multiplies_the_smallest_and_cuts_at_the_end_of_its_phase():
    model, optimizer, run = started(sw.method("iss_p", density=0.25, train=SoftShrink(factor=0.5)))
    plain = net()
    step(model, optimizer, run)
    other = torch.optim.SGD(plain.parameters(), lr=0.1)
    loss(plain).backward()
    other.step()
    for site in sites(plain):
        weight = site.read(plain)
        mask = sw.select(weight.abs(), sw.Pattern.parse("tensor"), round(0.25 * site.size)).mask()
        assert torch.allclose(site.read(model), torch.where(mask, weight, 0.5 * weight))
    for i in range(8):
        step(model, optimizer, run, i)
    assert run.density == 1.0 and all(s.read(model).all() for s in sites(model))
    for i in range(3):
        step(model, optimizer, run, i)
    held = run.supports
    assert run.density == pytest.approx(0.25, abs=0.01)
    step(model, optimizer, run)
    assert run.finish() == held


def test_a_growing_penalty_pulls_the_smallest():
    method = sw.method("iss_l2", density=0.25, train=GrowingL2(step=0.2, every=2, limit=0.3))
    model, optimizer, run = started(method)
    plain = net()
    other = torch.optim.SGD(plain.parameters(), lr=0.1)
    pressure = torch.zeros(24, 16)
    for i in range(6):
        weight = plain[0].weight.detach()
        if i % 2 == 0:
            mask = sw.select(weight.abs(), sw.Pattern.parse("tensor"), 96).mask()
            pressure = torch.where(mask, pressure, (pressure + 0.2).clamp(max=0.3))
        other.zero_grad()
        loss(plain, i).backward()
        plain[0].weight.grad += pressure * weight
        run_gradient = plain[0].weight.grad.clone()
        optimizer.zero_grad()
        loss(model, i).backward()
        optimizer.step()
        assert i > 0 or torch.allclose(model[0].weight.grad, run_gradient, atol=1e-6)
        run.step()
        with torch.no_grad():
            for a, b in zip(plain.parameters(), model.parameters(), strict=True):
                a.copy_(b)
    assert torch.equal(run.sites[0].state["pressure"], pressure) and float(pressure.max()) == pytest.approx(0.3)


def test_the_hyper_sparse_gradient_is_the_derivative_of_its_loss():
    weights = [torch.randn(6, 5, dtype=torch.double, requires_grad=True) for _ in range(2)]
    sizes = torch.cat([w.abs().flatten() for w in weights])
    s = 0.6585 / sizes.detach().sort().values[54]
    spread = (s * sizes).tanh()
    (sizes.sum() * spread.sum() / spread.sum().detach() - sizes.sum()).backward()
    for pull, weight in zip(hyper_sparse([w.detach() for w in weights], 54), weights, strict=True):
        assert torch.allclose(pull, weight.grad)


def test_the_penalty_waits_and_grows():
    regime = Penalised(rate=1e-3, growth=2.0, epoch=2, warmup=2)
    model, optimizer, run = started(sw.method("hyper_sparse", density=0.25, train=regime))
    seen = []
    for i in range(8):
        seen.append(regime.strength(run))
        step(model, optimizer, run, i)
    assert seen == [0, 0, 0, 0, 1e-3, 1e-3, 2e-3, 2e-3]
    assert run.density == 1.0
    run.finish()
    assert run.density == 0.25
    with pytest.raises(BudgetError, match="hyper_sparse"):
        started(sw.method("hyper_sparse", train=Penalised(kind="l7")))


def test_training_stops_when_a_pruned_copy_is_as_good_as_the_dense_model():
    model, _, run = started(sw.method("hyper_sparse", density=0.25))
    values = iter([0.1, 0.2, 0.9, 0.8, 0.9])
    ripe = RipeStop(run, lambda m: next(values), target=0.6)
    with pytest.raises(ModelError, match="before 3 epochs"):
        assert ripe.model
    stops = [ripe.epoch()]
    for _ in range(2):
        stops.append(ripe.epoch())
    with torch.no_grad():
        model[0].weight.mul_(2)
    stops.append(ripe.epoch())
    assert stops == [False, False, False, True] and ripe.value == pytest.approx((0.2 + 0.9 + 0.8) / 3)
    kept = sum(s.count for s in ripe.supports.values())
    assert kept == round(0.25 * sum(s.size for s in sites(model))) and model[0].weight.all()
    mask = ripe.supports["0"].mask()
    assert torch.equal(ripe.model[0].weight, net()[0].weight * mask)  # the copy before the weights doubled
    with pytest.raises(BudgetError, match="odd"):
        RipeStop(run, lambda m: 0.0, target=0.6, window=2)


def test_the_learned_threshold_and_its_gradients():
    method = sw.method("autosparse", schedule=Constant(0.3), train=LearnedThreshold(first=-2.0, stop=1.0))
    model, optimizer, run = started(method)
    weight = net()[0].weight.detach().requires_grad_()
    level = torch.tensor([-2.0], requires_grad=True)
    over = weight.abs() - level.sigmoid()
    soft = weight.sign() * torch.where(over > 0, over, 0.3 * over)  # its value below is replaced by 0
    hard = torch.where(over > 0, soft, soft - soft.detach())
    assert torch.equal(model[0].weight, hard.detach())
    x = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    z = F.linear(F.linear(x, hard, model[0].bias.detach()).relu(), model[2].weight.detach(), model[2].bias.detach())
    (z - x[:, :8].sin()).square().mean().backward()
    loss(model).backward()
    run.regime.before(run)
    assert torch.allclose(model[0].weight.grad, weight.grad, atol=1e-6)
    assert torch.allclose(run.sites[0].learned["threshold"].grad, level.grad, atol=1e-6)
    optimizer.step()
    run.step()
    shown = model[0].weight.detach().clone()
    run.finish()
    assert torch.equal(model[0].weight, shown) and torch.equal(model[0].weight != 0, run.supports["0"].mask())


def test_annealing_falls_from_its_start_to_nothing():
    schedule = Annealing(0.75)
    values = [schedule(t / 10) for t in range(11)]
    assert values == sorted(values, reverse=True) and values[-1] < 0.01
    assert schedule(0) == pytest.approx(0.75, abs=2e-3)
    assert schedule(0.7) == pytest.approx(0.75 * max((1 + math.cos(0.7 * math.pi)) / 2, 1 - 1 / (1 + math.exp(-2.4))))


def test_a_harmonic_ramp_gives_density_back_and_arrives():
    schedule = Harmonic()
    values = [schedule(t / 200) for t in range(201)]
    rises = [b > a for a, b in pairwise(values)]
    turns = sum(up and not then for up, then in pairwise(rises))
    assert values[0] == 0 and values[-1] == 1 and min(values) >= 0 and max(values) <= 1
    assert turns >= 2


def test_weights_return_with_the_value_they_had():
    method = sw.method("gmp_harmonic", density=0.1, train=Regrow(every=1))
    model, optimizer, run = started(method, steps=60)
    place, grown = run.sites[0], 0
    for i in range(60):
        before, mask = place.weight().clone(), place.mask.clone()
        event = step(model, optimizer, run, i)
        assert torch.equal(place.weight()[~mask], before[~mask])
        came = place.mask & ~mask
        assert torch.equal(place.site.read(model)[came], before[came])
        grown += event.grown if event else 0
    assert grown > 50 and run.finish()["0"].density == pytest.approx(0.1, abs=0.01)


def test_variational_noise_has_the_variance_that_is_learned():
    model, _, run = started(sw.method("variational_dropout", train=Variational(first=-2.0)))
    x = torch.randn(1, 16).expand(20_000, 16)
    mean = F.linear(x[:1], model[0].weight, model[0].bias)
    noise = (model[0](x) - mean).detach()
    assert torch.allclose(noise.var(dim=0), x[0].square().sum() * math.exp(-2), rtol=0.05)
    model.eval()
    assert torch.allclose(model[0](x[:1]), mean)
    model.train()
    run.finish()
    assert torch.equal(model[0](x[:1]), model[0](x[:1]))


def test_the_divergence_has_the_published_shape_and_drives_noise_up():
    log_a = torch.linspace(-8, 8, 33)
    assert (divergence(log_a).diff() < 0).all() and float(divergence(torch.tensor(30.0))) == pytest.approx(0, abs=1e-4)
    assert float(divergence(torch.tensor(0.0))) == pytest.approx(
        0.63576 * (1 - 1 / (1 + math.exp(-1.8732))) + 0.5 * math.log(2)
    )
    assert float(log_alpha(torch.tensor([[2.0]]), torch.tensor([[0.0]]))) == pytest.approx(-math.log(4))
    model, optimizer, run = started(sw.method("variational_dropout", train=Variational(examples=1, first=-4.0)))
    step(model, optimizer, run)
    assert float(run.sites[0].learned["log_variance"].detach().mean()) > -4.0


def test_variational_dropout_keeps_a_budget_if_there_is_no_threshold():
    model, optimizer, run = started(sw.method("variational_dropout", density=0.2, train=Variational(threshold=None)))
    step(model, optimizer, run)
    run.finish()
    assert run.density == pytest.approx(0.2, abs=0.01)
    with pytest.raises(ModelError, match="whole Linear"):
        attention = nn.Sequential(nn.MultiheadAttention(8, 2))
        optimizer = torch.optim.SGD(attention.parameters(), lr=0.1)
        sw.Sparsifier(attention, "variational_dropout", optimizer, steps=3)
