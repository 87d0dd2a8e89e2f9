"""Turns on one cache, six baselines on one interface, and the worst task beside the mean."""

import pytest
import torch

import sparseworks as sw
from sparseworks.attention.methods.frontier import SIX, at_density
from sparseworks.evaluate.sequences import mqar, passkey
from sparseworks.jobs.frontier import Measured, ask, frontier, loss_by_task, tolerated, worst_loss


@pytest.fixture(scope="module")
def model():
    return sw.load("sparseworks/recall-lm").eval()


@torch.no_grad()
def test_what_the_first_question_did_not_need_is_gone_at_the_second(model):
    """SCBench: eviction by the question answers the first turn only; pages of a whole cache answer all; bytes tell the difference."""
    examples = mqar(16, 256, pairs=16, turns=4, seed=1)
    evicted = ask(model, at_density("snapkv", 0.1, 256), examples)
    paged = ask(model, at_density("quest", 0.1, 256), examples)
    whole = ask(model, at_density("snapkv", 1.0, 256), examples)
    assert evicted.turns[0] >= 0.9 and max(evicted.turns[1:]) <= 0.5
    assert min(paged.turns) >= 0.7 and paged.read[1] < 0.15
    assert whole.value == 1 and evicted.nbytes < 0.4 * whole.nbytes


@torch.no_grad()
def test_six_baselines_run_on_one_interface_and_the_worst_task_is_told(model):
    tasks = {"passkey": passkey(4, 96, seed=1), "mqar": mqar(4, 96, pairs=8, turns=2, seed=1)}
    rows = frontier(model, tasks, (0.25,))
    assert len(rows) == 2 * (1 + len(SIX)) and {r.method for r in rows} == {"dense", *SIX}
    assert all(r.value == 1 for r in rows if r.method == "dense")
    for name in SIX:
        task, loss = worst_loss(rows, name, 0.25)
        losses = loss_by_task(rows, name, 0.25)
        assert loss == max(losses.values()) == losses[task]
    assert all(r.read[0] < 1 for r in rows if r.method in SIX[:3])
    assert all(r.read[1] < 0.5 for r in rows if r.method == "quest")
    assert all(r.nbytes for r in rows if r.method in SIX[4:])


def test_what_is_tolerated_ends_at_the_first_failure():
    rows = [Measured("m", "t", d, (v,), 0, (1.0, 1.0)) for d, v in ((0.5, 0.98), (0.25, 0.5), (0.1, 0.99))]
    rows.append(Measured("dense", "t", 1.0, (1.0,), 0, (1.0, 1.0)))
    assert tolerated(rows, "m", "t") == 0.5 and tolerated(rows, "m", "t", loss=0.6) == 0.1
    assert tolerated(rows, "m", "t", loss=0.01) == 1.0
