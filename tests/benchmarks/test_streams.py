"""Benchmarks of streams, federations, games, recommenders and masks: they run, and their rows say what was kept and what it cost."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")


@pytest.fixture
def script(monkeypatch):
    """Gives a module of `benchmarks/weights` by its name, found as when it is run."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "weights"))
    return importlib.import_module


def test_a_cropped_network_has_no_more_weights_than_the_mask_it_was_read_from(script):
    tickets, rows = script("conv_tickets"), script("rows")
    run = tickets.Run(script("images").digits().first(64), "cpu", 1)
    found = [tickets.dense(run, 0), *tickets.start(run, "SNIP", 0.1, 0)]
    assert [r.label for r in found] == ["dense", "SNIP", "SNIP, shuffled", "SNIP, cropped"]
    assert len(rows.groups(found)) == 1
    mask, control, narrow = (r.record for r in found[1:])
    assert mask.densities == control.densities and mask.when == narrow.when == "before"
    assert 0.85 * mask.kept < narrow.kept <= mask.kept


def test_cycles_end_at_their_density_and_tell_the_zeros_after_relu(script):
    tickets = script("conv_tickets")
    run = tickets.Run(script("images").digits().first(64), "cpu", 2)
    for label in ("AP", "negatives by chance"):
        found = tickets.cycle(run, label, 0, 0.8, 0.1)
        assert [r.density for r in found] == [0.2, 0.1] and found[-1].record.method == "ap"
        assert all(0 < r.record.more["zeros_after_relu"] < 100 for r in found)


def test_steps_of_a_task_are_those_that_are_left_after_removal(script):
    rehearsal = script("rehearsal")
    assert rehearsal.planned(240, 20, 0.0, 16) == 300
    left, steps = 240, 0
    for epoch in range(20):
        left -= 18 if epoch in rehearsal.REMOVALS else 0
        steps += -(-left // 16)
    assert rehearsal.planned(240, 20, 0.3, 16) == steps


def test_images_come_as_streams(script):
    rehearsal, rows = script("rehearsal"), script("rows")
    x, y = torch.randn(40, 3, 16, 16), torch.arange(40) % 10
    stream = script("task_streams").stream_of("noise", x, y, x, y)
    ways = rehearsal.rehearsals(0.25, 10)
    found = [
        rehearsal.class_incremental(stream, n, ways[n], d, 0, 2, 20, 64) for n, d in (("dense", 1.0), ("sparcl", 0.25))
    ]
    assert len(rows.groups(found)) == 1 and found[1].record.examples == 40
    assert 0.1 < found[1].record.training_flops / found[0].record.training_flops < 0.4


def test_recommenders_keep_their_budget(script):
    recommender, rows = script("recommender"), script("rows")
    cases = [("dense", 1.0), *((label, 0.3) for label in recommender.LABELS)]
    found = [recommender.trained(label, density, 0, 60, 4, "cpu") for label, density in cases]
    assert len(rows.groups(found)) == 1
    assert {r.record.kept for r in found} == {2 * 60 * 64, round(0.3 * 2 * 60 * 64)}
    assert [r.record.when for r in found] == ["never", "during", "during", "before"]


def test_groups_of_neurons_keep_as_many_weights_as_chance(script):
    modular, rows = script("modular"), script("rows")
    data = (torch.randn(64, 32), torch.randint(10, (64,)), torch.randn(8, 32), torch.randint(10, (8,)))
    found = [modular.trained(data, "noise", n, m, 0.25, 0, 1) for n, m in modular.methods(0.25, 1).items()]
    assert len(rows.groups(found)) == 1
    assert len({r.record.kept for r in found[2:]}) == 1 and found[1].record.kept < found[0].record.kept / 3


def test_clients_share_images_and_agents_walk(script):
    federated, games = script("federated"), script("reinforcement")
    x, y = torch.randn(300, 12), torch.arange(300) % 10
    task = federated.Task("noise", x, y, x, y, 64, 0.0)
    label = federated.FEDDST
    row = federated.trained(task, label, federated.methods(0.1, 1)[label], 0, 2, 0.1)
    assert row.record.task == "noise, ten clients" and row.record.more["uploaded"] > 0
    dense, paced = (games.walk("maze of 6 x 6", name, 1.0, 0, 1) for name in ("dense", "eau_de_qn"))
    assert paced.record.training_flops > 3 * dense.record.training_flops and paced.density <= 1.0
    moving = games.access("dense", None, 1.0, 1, 2, games.MOVING)
    assert moving[0].record.task.endswith("moves")
