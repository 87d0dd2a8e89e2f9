"""Regimes on coupled units: the budget in groups, exact zeros that stay, slicing; every formula against a loop by hand."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.method import Method
from sparseworks.solve.groups import envelope_prox
from sparseworks.stream import dependency_groups
from sparseworks.weights.train import (
    CutGroups,
    FeatureFlow,
    ShrinkAfterTrials,
    ShrinkGroups,
    SparseGammas,
    load_state,
    save_state,
)
from sparseworks.weights.train.flow import feature_flow

GROUPED = [m.name for m in Method.all() if m.train is not None and m.train.grouped]


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def net(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    stem = [nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    blocks = nn.Sequential(Block(width), Block(width))
    made = nn.Sequential(*stem, blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
    for name, value in made.named_parameters():
        if ".bn" in name or name.startswith("1."):
            nn.init.uniform_(value, 0.2, 1.5)
    return made


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(8, 1, 5, 5, generator=g), torch.randint(0, 4, (8,), generator=g)


class Run:
    """A training of `net`, step by step."""

    def __init__(self, method, steps: int = 20, lr: float = 0.05, momentum: float = 0.9):
        self.model = net()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=momentum)
        self.couplings = dependency_groups(self.model, batch(0)[0])
        self.sparsifier = sw.Sparsifier(self.model, method, self.optimizer, steps=steps, couplings=self.couplings)
        self.done = 0

    def go(self, steps: int) -> Run:
        for _ in range(steps):
            self.optimizer.zero_grad()
            x, y = batch(self.done)
            F.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
            self.sparsifier.step()
            self.done += 1
        return self

    @property
    def norms(self) -> torch.Tensor:
        return self.sparsifier.units.sums().squares.sqrt()


def named(name: str, **changes):
    method = sw.method(name, density=0.5)
    return method.with_(train=replace(method.train, **changes)) if changes else method


@pytest.mark.parametrize("name", GROUPED)
def test_exactly_the_budget_goes_and_the_sliced_model_is_the_masked_one(name):
    run = Run(named(name)).go(20)
    run.sparsifier.finish()
    kept = run.sparsifier.units.kept
    assert sum(int(k.sum()) for k in kept.values()) == 12 and all(k.any() for k in kept.values())
    assert int((run.norms > 0).sum()) == 12
    masked, x = run.model.eval(), batch(99)[0]
    before = masked(x)
    parameters = sum(p.numel() for p in masked.parameters())
    assert all(torch.equal(k, kept[n]) for n, k in run.sparsifier.slice().items())
    torch.testing.assert_close(run.model(x), before, rtol=1e-6, atol=1e-6)
    assert sum(p.numel() for p in run.model.parameters()) < 0.7 * parameters


@pytest.mark.parametrize("name", ["group_magnitude", "hesso", "mask_sparsity", "network_slimming", "ffr"])
def test_what_is_gone_stays_gone_while_the_rest_trains(name):
    cut = {} if name in ("mask_sparsity", "network_slimming") else {"cut": 0.5}
    run = Run(named(name, **cut)).go(13)
    gone = ~run.sparsifier.units.alive
    assert int(gone.sum()) == 12
    before = run.norms
    run.go(4)
    assert run.norms[gone].abs().max() == 0 and (run.norms[~gone] != before[~gone]).all()
    assert torch.equal(~run.sparsifier.units.alive, gone)


@pytest.mark.parametrize("name", ["hesso", "group_magnitude", "hesso_cric"])
def test_kept_counts_come_in_multiples(name):
    run = Run(named(name, multiple=4)).go(20)
    run.sparsifier.finish()
    counts = [int(k.sum()) for k in run.sparsifier.units.kept.values()]
    assert sum(counts) == 12 and all(n % 4 == 0 and n for n in counts)


@pytest.mark.parametrize("name", [n for n in GROUPED if n not in ("yolov8_cwd", "group_channels")])
def test_a_floor_holds_in_every_coupling_and_the_budget_too(name):
    """The stem's filters are a hundredth of the others: without a floor they go first."""

    def kept(**changes):
        run = Run(named(name, **changes), lr=1e-3)
        with torch.no_grad():
            for part in (run.model[0], run.model[1]):
                part.weight.mul_(0.01)
        run.go(20).sparsifier.finish()
        return {n: int(k.sum()) for n, k in run.sparsifier.units.kept.items()}

    counts = kept(floor=0.375)
    assert sum(counts.values()) == 12 and min(counts.values()) >= 3
    with pytest.raises(BudgetError, match="12 of 24 units have to go, and with a floor of 75% a coupling only 6 can"):
        kept(floor=0.75)
    if name == "group_magnitude":
        assert min(kept().values()) < 3


def test_a_run_goes_on_from_a_file(tmp_path):
    run = Run(named("hesso_cric", periods=1, trials=2, trial=0.1, cut=0.9)).go(5)
    save_state(tmp_path / "state.safetensors", run.sparsifier)
    second = Run(named("hesso_cric", periods=1, trials=2, trial=0.1, cut=0.9))
    second.model.load_state_dict(run.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    second.sparsifier.load_state_dict(load_state(tmp_path / "state.safetensors"))
    second.done = 5
    first, second = run.go(15), second.go(15)
    assert torch.equal(first.sparsifier.units.alive, second.sparsifier.units.alive)
    assert torch.equal(first.norms, second.norms)


def test_shrinking_is_a_straight_line_to_zero():
    """With learning rate 0 nothing else moves: after step t of T a chosen group is (T - t - 1) / T of what it was."""
    run = Run(named("hesso", start=0.2, cut=0.6, periods=2), lr=0.0)
    start = run.norms
    run.go(4)
    assert torch.equal(run.norms, start)
    run.go(1)
    chosen = run.sparsifier.units.state["shrinking"]
    assert int(chosen.sum()) == 6
    for t in range(3):
        torch.testing.assert_close(run.norms, torch.where(chosen, start * (3 - t) / 4, start), rtol=1e-5, atol=0)
        run.go(1)
    assert torch.equal(run.norms > 0, ~chosen) and torch.equal(run.sparsifier.units.alive, ~chosen)
    run.go(1)
    assert int(run.sparsifier.units.state["shrinking"].sum()) == 6
    run.go(3)
    assert int((run.norms == 0).sum()) == 12


def test_trials_end_where_they_began_and_then_only_the_chosen_shrink():
    method = named("hesso_cric", periods=1, start=0.1, trial=0.1, trials=3, cut=0.9)
    run = Run(method, lr=0.0).go(2)
    start = copy.deepcopy(dict(run.model.named_parameters()))
    run.go(1)
    tried = run.sparsifier.units.state["trial"]
    assert int(tried.sum()) == 12 and (run.norms[tried] < 1).any()
    run.go(
        1
    )  # two steps a trial: weights are back, and with no progress nothing new is among the lowest, or it is tried
    while "chosen" not in run.sparsifier.units.state:
        run.go(1)
        assert run.done <= 8
    assert all(torch.equal(p, start[n]) for n, p in run.model.named_parameters())
    chosen, begun, norms = run.sparsifier.units.state["chosen"], run.done, run.norms
    run.go(1)
    left = 18 - begun
    torch.testing.assert_close(run.norms, torch.where(chosen, norms * (left - 1) / left, norms), rtol=1e-5, atol=0)
    run.go(left - 1)
    assert torch.equal(run.norms == 0, chosen)


def test_every_period_tries_before_it_removes():
    """With learning rate 0: half go in the first period, the rest in the second, each after trials that leave no trace."""
    run = Run(named("hesso_cric", periods=2, start=0.1, trial=0.1, trials=2, cut=0.9), lr=0.0)
    run.go(2)
    for period in range(2):
        gone, before = ~run.sparsifier.units.alive, run.norms
        while "chosen" not in run.sparsifier.units.state:
            run.go(1)
        assert run.done <= 2 + 8 * period + 4
        assert torch.equal(run.norms, before)
        chosen = run.sparsifier.units.state["chosen"]
        assert int(chosen.sum()) == 6 and not (chosen & gone).any()
        run.go(2 + 8 * (period + 1) - run.done)
        assert torch.equal(run.sparsifier.units.alive, ~(gone | chosen))
    assert torch.equal(run.norms == 0, gone | chosen) and int((gone | chosen).sum()) == 12


def test_with_data_layers_are_tried_too_and_what_the_loss_cannot_spare_is_kept():
    """The deviation is that of copies without the weakest quarter, half and three quarters of each layer, by hand."""
    model, fed = net(), [batch(100), batch(101)]
    listed = [c for c in dependency_groups(model, batch(0)[0]) if c.name.endswith("conv1.channels")]
    loss = lambda m, b: F.cross_entropy(m(b[0]), b[1])  # noqa: E731

    def mean(m):
        with torch.no_grad():
            return sum(float(loss(m.eval(), b)) for b in fed) / 2

    start, expected = copy.deepcopy(model.state_dict()), []
    for i in range(2):
        block = model[3][i]
        parts = (block.conv1.weight.flatten(1).square().sum(1), block.bn1.weight.square(), block.bn1.bias.square())
        order, found = sum(parts).argsort(), 0.0
        for some in (2, 4, 6):
            without = copy.deepcopy(model)
            with torch.no_grad():
                for value in (without[3][i].conv1.weight, without[3][i].bn1.weight, without[3][i].bn1.bias):
                    value[order[:some]] = 0.0
            found += mean(without) / mean(copy.deepcopy(model)) / 3 / 8
        expected += [found] * 8
    method = named("hesso_cric", periods=1, start=0.1, trial=0.1, trials=3, cut=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run = sw.Sparsifier(model, method, optimizer, steps=20, couplings=listed, data=fed, loss=loss)
    torch.testing.assert_close(run.units.state["layers"].float(), torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert all(torch.equal(v, start[n]) for n, v in model.state_dict().items()) and model.training
    run.units.state["layers"] = torch.tensor([5.0] * 8 + [0.0] * 8, dtype=torch.float64)
    for step in range(20):
        optimizer.zero_grad()
        loss(model, batch(step)).backward()
        optimizer.step()
        run.step()
    run.finish()
    assert [int(k.sum()) for k in run.units.kept.values()] == [7, 1]  # one stays of every layer


def test_what_costs_the_loss_on_its_way_to_zero_is_not_chosen():
    """A unit with small weights that all others rest on: its gradient says so, its norm does not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False))
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].weight[0] *= 0.2
        model[2].weight.mul_(0.05)[:, 0] = torch.tensor([8.0, -8.0])
    x = torch.rand(64, 4)
    y = model(x).detach()
    kept = {}
    for name in ("hesso", "hesso_cric"):
        trained = copy.deepcopy(model)
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
        train = {"start": 0.0, "cut": 0.9, "score": "norm"}
        method = sw.method(name, density=0.5)
        run = sw.Sparsifier(trained, method.with_(train=replace(method.train, **train)), optimizer, steps=100)
        for _ in range(100):
            optimizer.zero_grad()
            F.mse_loss(trained(x), y).backward()
            optimizer.step()
            run.step()
        run.finish()
        kept[name] = bool(run.units.alive[0])
    assert kept == {"hesso": False, "hesso_cric": True}


def gamma_gradients(run: Run) -> dict[str, torch.Tensor]:
    """What the penalty added to the gradients of all factors of norms in the next step."""
    seen = {}
    x, y = batch(run.done)
    plain = copy.deepcopy(run.model)
    F.cross_entropy(plain(x), y).backward()
    handle = run.optimizer.register_step_post_hook(
        lambda *_: seen.update({n: p.grad.clone() for n, p in run.model.named_parameters()})
    )
    run.go(1)
    handle.remove()
    return {n: seen[n] - p.grad for n, p in plain.named_parameters() if ".bn" in n or n.startswith("1.")}


def test_slimming_presses_on_all_factors_and_only_on_factors():
    added = gamma_gradients(Run(named("network_slimming", rate=0.3), momentum=0.0))
    for name, gradient in added.items():
        torch.testing.assert_close(gradient, torch.full_like(gradient, 0.3 if name.endswith("weight") else 0.0))


def test_mask_sparsity_marks_goes_back_and_presses_on_the_marked_alone():
    run = Run(named("mask_sparsity", rate=0.3, mark=0.2), momentum=0.0)
    start = copy.deepcopy(run.model.state_dict())
    assert all((g > 0.2).all() for n, g in gamma_gradients(run).items() if n.endswith("weight"))
    run.go(3)
    assert all(torch.equal(v, start[n]) for n, v in run.model.state_dict().items() if "num_batches" not in n)
    marked = run.sparsifier.units.state["marked"]
    added = gamma_gradients(run)
    groups = run.sparsifier.units.groups
    for part in groups.parts:
        name = next(n for n, p in run.model.named_parameters() if p is part.parameter)
        if part.scale:
            expected = torch.where(marked[part.owners % len(marked)], 0.3, 0.0).to(added[name])
            torch.testing.assert_close(added[name], expected)
    run.go(7)
    assert torch.equal(run.sparsifier.units.alive, ~marked)


def test_small_factors_are_pressed_in_proportion():
    run = Run(named("network_slimming", rate=0.4), lr=0.5, momentum=0.0)
    with torch.no_grad():
        run.model[1].weight[0] = 0.1
    assert float(gamma_gradients(run)["1.weight"][0]) == pytest.approx(0.4 * 0.1, abs=1e-6)


def test_a_proximal_step_is_the_optimisers_step_then_the_prox():
    run = Run(named("wgsef", strength=2.0, balanced=False), momentum=0.0)
    plain = copy.deepcopy(run.model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    x, y = batch(0)
    F.cross_entropy(plain(x), y).backward()
    optimizer.step()
    named_plain = dict(plain.named_parameters())
    stage = torch.cat([named_plain[n].flatten(1) if named_plain[n].dim() > 1 else named_plain[n].unsqueeze(1) for n in (
        "0.weight", "1.weight", "1.bias", "3.0.conv2.weight", "3.0.bn2.weight", "3.0.bn2.bias", "3.1.conv2.weight",
        "3.1.bn2.weight", "3.1.bn2.bias",
    )], dim=1)  # fmt: skip
    inner = [
        torch.cat([b.conv1.weight.flatten(1), b.bn1.weight.unsqueeze(1), b.bn1.bias.unsqueeze(1)], dim=1)
        for b in plain[3]
    ]
    norms = torch.cat([stage.norm(dim=1), *(i.norm(dim=1) for i in inner)]).double().detach()
    factors = envelope_prox(norms, 12, 0.1)
    run.go(1)
    torch.testing.assert_close(run.norms, norms * factors, rtol=1e-5, atol=1e-6)
    assert 0 < factors.min() < 0.9 * factors.max() or factors.min() == 0


def test_the_penalty_of_feature_flow_is_that_of_the_loss():
    run = Run(named("ffr", length=0.7, bending=0.4, layers=("0", "2", "3.0", "3.1"), cut=1.0), momentum=0.0)
    plain, seen = net(), []  # a copy of the model would bring its hooks
    for layer in (plain[0], plain[2], plain[3][0], plain[3][1]):
        layer.register_forward_hook(lambda m, i, o: seen.append(o))
    x, y = batch(0)
    loss = F.cross_entropy(plain(x), y)
    u = seen[:4]
    loss = loss + sum(0.7 * (b - a).abs().mean() for a, b in pairwise(u))
    loss = loss + sum(0.4 * (c - 2 * b + a).abs().mean() for a, b, c in zip(u, u[1:], u[2:], strict=False))
    loss.backward()
    found = {}
    run.optimizer.register_step_post_hook(
        lambda *_: found.update({n: p.grad.clone() for n, p in run.model.named_parameters()})
    )
    run.go(1)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
    run.sparsifier.finish()
    assert not any(m._forward_hooks for m in run.model.modules())


def test_features_of_another_shape_are_left_out():
    assert feature_flow([torch.ones(2, 3), torch.ones(2, 4)], 1, 1) is None
    assert float(feature_flow([torch.ones(2, 4), torch.zeros(2, 3), torch.ones(2, 3)], 2, 5)) == 2


def test_what_cannot_work_is_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ModelError, match="no coupled units: give `couplings`"):
        sw.Sparsifier(model, "hesso", optimizer, steps=5)
    two = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(two.parameters(), lr=0.1)
    with pytest.raises(ModelError, match="scales channels by norms"):
        sw.Sparsifier(two, "network_slimming", optimizer, steps=5)
    with pytest.raises(ModelError, match="makes entries sparse"):
        sw.Sparsifier(two, "gmp", optimizer, steps=5).slice()
    with pytest.raises(ModelError, match="no such layer"):
        sw.Sparsifier(two, named("ffr", layers=("9",)), optimizer, steps=5)
    for wrong in (
        lambda: CutGroups(multiple=0),
        lambda: ShrinkGroups(start=0.8),
        lambda: ShrinkAfterTrials(trials=50),
        lambda: SparseGammas(mark=0.9),
        lambda: FeatureFlow(cut=2.0),
    ):
        with pytest.raises(BudgetError):
            wrong()
