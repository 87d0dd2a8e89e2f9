"""The cycle: counts, what is held, where it goes on from, and a run that was cut off."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.cycle import Cycle
from sparseworks.core.errors import BudgetError, CalibrationError, CheckpointError, ModelError
from sparseworks.core.schedule import Rounds, Survivors
from sparseworks.stream import sites
from sparseworks.weights.control import shuffled


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_a_fifth_of_the_survivors_goes_every_round_and_nothing_comes_back(digits):
    model, seen = digits.net(), []
    whole = sum(s.size for s in sites(model))

    found = sw.cycles(
        model,
        sw.method("imp_finetune", density=0.5),
        digits.train(5),
        each=lambda r, m, s: seen.append(s),
        progress=False,
    )
    assert [round(r.density, 2) for r in found.rounds] == [1.0, 0.8, 0.64, 0.51, 0.5]
    assert sum(s.count for s in found.supports.values()) == round(0.5 * whole)
    for old, new in pairwise(seen):
        assert all(new[name] <= old[name] for name in new)
    for s in sites(model):
        assert not s.read(model)[~found.supports[s.name].mask()].any()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_supports_are_held_whatever_optimiser_trains(digits, kind):
    model, other = digits.net(), nn.Linear(2, 2)

    def train(model, lap):
        optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.1)
        stranger = torch.optim.SGD(other.parameters(), lr=0.1)
        for _ in range(3):
            model(digits.x).square().sum().backward()
            other(torch.ones(1, 2)).sum().backward()
            optimizer.step(), stranger.step()
        assert sum(int((s.read(model) != 0).sum()) for s in sites(model)) <= round(lap.density * 8832) + 1

    sw.cycles(model, sw.method("imp_finetune", density=0.3, schedule=Rounds(2)), train, progress=False)


def test_rewinding_starts_every_round_from_the_same_early_weights(digits):
    starts, model = [], digits.net()
    first = state(model)

    def train(model, lap):
        starts.append(state(model))
        digits.train(20)(model, lap)

    method = sw.method("imp", density=0.3, schedule=Rounds(2), cycle=Cycle(rewind=0.0))
    found = sw.cycles(model, method, train, progress=False)
    for start in starts:
        assert all(torch.equal(start[k][start[k] != 0], first[k][start[k] != 0]) for k in start)
    assert (starts[-1]["0.weight"] != 0).sum() == found.supports["0"].count
    late = []
    model = digits.net()
    later = sw.method("imp", density=0.3, schedule=Rounds(2), cycle=Cycle(rewind=0.25))
    sw.cycles(model, later, lambda m, lap: (late.append(state(m)), digits.train(20)(m, lap)), steps=20, progress=False)
    kept = late[1]["0.weight"] != 0
    assert not torch.equal(late[1]["0.weight"][kept], first["0.weight"][kept])
    assert torch.equal(late[2]["0.weight"][late[2]["0.weight"] != 0], late[1]["0.weight"][late[2]["0.weight"] != 0])


def test_a_run_that_was_cut_off_ends_like_one_that_was_not(digits, tmp_path):
    method = sw.method(
        "ap", density=0.2, schedule=Survivors(0.4), cycle=Cycle(rewind=0.2, copies=2, tail=0.5, activate=0.2)
    )
    whole = digits.net()
    expected = sw.cycles(whole, method, digits.train(10), steps=10, progress=False)
    calls = []

    def train(model, lap):
        calls.append(lap)
        if len(calls) == 6:
            raise KeyboardInterrupt
        digits.train(10)(model, lap)

    with pytest.raises(KeyboardInterrupt):
        sw.cycles(digits.net(), method, train, steps=10, progress=False, workdir=tmp_path / "run")
    again = digits.net()
    found = sw.cycles(again, method, train, steps=10, progress=False, workdir=tmp_path / "run")
    assert found.supports == expected.supports and len(calls) == 6 + 2 * len(found.rounds) - 4
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    with pytest.raises(CheckpointError):
        sw.cycles(digits.net(1), method, train, steps=10, progress=False, workdir=tmp_path / "run")


def test_a_start_encloses_what_is_found(digits):
    model = digits.net()
    start = shuffled(sw.prune(digits.net(), "random_balanced", progress=False).supports, seed=3)
    found = sw.cycles(
        model, sw.method("imp_finetune", density=0.2, schedule=Rounds(2)), digits.train(5), start=start, progress=False
    )
    assert all(found.supports[name] <= start[name] for name in start)
    assert found.rounds[0].density == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(BudgetError, match="fewer than"):
        sw.cycles(digits.net(), sw.method("imp", density=0.9), digits.train(5), steps=5, start=start, progress=False)


@pytest.mark.parametrize(
    "name, options, given, error, text",
    [
        ("magnitude", {}, {}, ModelError, "no cycle"),
        ("imp", {"density": 0.3}, {}, BudgetError, "give `steps`"),
        ("imp_finetune", {"pattern": "2:4"}, {}, BudgetError, "cannot"),
        ("imp", {"density": 0.3}, {"skip": ["*"], "steps": 5}, ModelError, "Nothing to prune"),
        ("imp", {"density": 0.3, "cycle": Cycle(rewind=0.9)}, {"steps": 90}, BudgetError, "too few to rewind"),
        ("sms_greedy", {"density": 0.3}, {}, CalibrationError, "give `evaluate`"),
        ("ap", {"density": 0.3, "pattern": "tensor"}, {"steps": 5}, BudgetError, "pattern 'global'"),
    ],
)
def test_what_cannot_work_is_refused(digits, name, options, given, error, text):
    with pytest.raises(error, match=text):
        sw.cycles(digits.net(), sw.method(name, **options), digits.train(5), progress=False, **given)


def test_a_training_without_steps_is_refused(digits):
    with pytest.raises(ModelError, match="took no step"):
        sw.cycles(digits.net(), sw.method("imp_finetune"), lambda model, lap: None, progress=False)


def test_prune_and_sparsifier_point_to_cycles(digits):
    model = digits.net()
    with pytest.raises(ModelError, match=r"sparseworks\.cycles"):
        sw.prune(model, "imp", progress=False)
    with pytest.raises(ModelError, match=r"sparseworks\.cycles"):
        sw.Sparsifier(model, "imp", torch.optim.SGD(model.parameters(), lr=0.1))


def test_batch_normalisation_asks_for_data(digits):
    with pytest.raises(CalibrationError, match="batch normalisation"):
        sw.cycles(digits.net(norm=True), sw.method("sms", density=0.3), digits.train(5), progress=False)


def test_cycle_refuses_bad_shares():
    with pytest.raises(BudgetError, match="at least one"):
        Cycle(copies=0)
    with pytest.raises(BudgetError, match="rewind"):
        Cycle(rewind=1.0)
    with pytest.raises(BudgetError, match="share in"):
        Survivors(1.0)
    assert Survivors(0.5).shares(0.2) == [0.5, 0.25, 0.2]
