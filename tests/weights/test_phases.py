"""Sparse fine-tuning: SquareHead against plain and logit losses, two-step pruning against one, continued training in between."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError
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


def test_squarehead_beats_the_task_and_the_logits_after_equal_steps(tiny_lm):
    pruned = copy.deepcopy(tiny_lm.dense)
    found = sw.prune(pruned, sw.method("sparsegpt", density=0.3), tiny_lm.data, progress=False)
    rows = torch.cat([b["input_ids"] for b in tiny_lm.data])[:, :32].split(2)
    batches, perplexity = [{"input_ids": r, "labels": r} for r in rows], {}
    for name, terms in {"task": (Task(),), "kl": (Task(), Logits()), "square": (Task(), SquareHead())}.items():
        student = copy.deepcopy(pruned)
        options = {"supports": found.supports, "terms": terms, "steps": 20, "lr": 3e-4, "progress": False}
        recover(student, tiny_lm.dense, batches, **options)
        perplexity[name] = tiny_lm.perplexity(student)
    assert perplexity["square"] < perplexity["kl"] < perplexity["task"]
    assert perplexity["square"] < tiny_lm.perplexity(pruned)


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


def test_the_first_phase_prunes(digits, batches):
    with pytest.raises(BudgetError, match="give it a density"):
        prune_in_phases(WithLoss(digits.trained), "magnitude", [Phase(None, 1)], batches)
