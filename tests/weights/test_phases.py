"""Sparse fine-tuning: SquareHead against plain and logit losses, two-step pruning against one, continued training in between."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
from torch import nn

import sparseworks as sw
from sparseworks.weights import Logits, Phase, SquareHead, Task, prune_in_phases, recover


class WithLoss(nn.Module):
    """A network that returns logits and the cross-entropy of its labels."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x, labels):
        logits = self.net(x)
        return SimpleNamespace(logits=logits, loss=nn.functional.cross_entropy(logits, labels))


@pytest.fixture(scope="module")
def batches(digits):
    return list(zip(digits.x.split(100), digits.y.split(100), strict=True))


def test_squarehead_beats_the_task_and_the_logits_after_equal_steps(digits, batches):
    teacher, losses = WithLoss(digits.trained), {}
    for name, terms in {"task": (Task(),), "kl": (Task(), Logits()), "square": (Task(), SquareHead())}.items():
        student = WithLoss(copy.deepcopy(digits.trained))
        found = sw.prune(student, sw.method("sparsegpt", density=0.1), batches, progress=False)
        recover(student, teacher, batches, supports=found.supports, terms=terms, steps=60, lr=1e-3, progress=False)
        losses[name] = digits.loss(student.net)
    assert losses["square"] < losses["kl"] and losses["square"] < losses["task"]


def test_two_steps_beat_one_and_continued_training_beats_none(digits, batches):
    schedules = {
        "direct": [Phase(0.1, 20)],
        "continued": [Phase(0.1, 60, lr=1e-3), Phase(None, 20)],
        "two steps": [Phase(0.3, 30, lr=1e-3), Phase(0.1, 30, lr=1e-3), Phase(None, 20)],
    }
    losses = {}
    for name, phases in schedules.items():
        model = WithLoss(copy.deepcopy(digits.trained))
        found, trained = prune_in_phases(model, "sparsegpt", phases, batches, progress=False)
        assert [r.steps for r in trained] == [p.steps for p in phases]
        assert sum(s.count for s in found.supports.values()) == round(
            0.1 * sum(s.size for s in found.supports.values())
        )
        losses[name] = digits.loss(model.net)
    assert losses["two steps"] < losses["continued"] < losses["direct"]
