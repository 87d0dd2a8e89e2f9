"""What retraining to N:M promises, on a language of 16 letters whose next letter depends on two."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparseworks as sw
from sparseworks.core.method import Method
from sparseworks.weights.train import AdamDecay, AdamShrink, add_branches

LETTERS, CONTEXT, STEPS = 16, 4, 200


class Retrained(NamedTuple):
    """Held-out loss before and after the final support is imposed; (step, entries that left supports) after the start."""

    before: float
    after: float
    flips: list[tuple[int, int]]


def trained(model, windows, steps, rate, method: Method | None = None, teacher=None) -> Retrained:
    inputs, labels = windows
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    run = sw.Sparsifier(model, method, optimizer, steps=steps) if method else None
    for i in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(20 * (i + 1) / steps, 0.55 + 0.45 * math.cos(math.pi * i / steps))
        at = torch.randint(4096, len(inputs), (128,), generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        logits = model(inputs[at])
        loss = F.cross_entropy(logits, labels[at])
        if teacher is not None:
            with torch.no_grad():
                wanted = F.log_softmax(teacher(inputs[at]), -1)
            taught = F.kl_div(F.log_softmax(logits, -1), wanted, log_target=True, reduction="batchmean")
            loss = loss / 3 + 2 / 3 * taught
        loss.backward()
        optimizer.step()
        if run:
            run.step()
    before = held(model, windows)
    if run:
        run.finish()
    return Retrained(before, held(model, windows), [(e.step, e.dropped) for e in run.history[1:]] if run else [])


@torch.no_grad()
def held(model, windows) -> float:
    return float(F.cross_entropy(model(windows[0][:4096]), windows[1][:4096]))


def fully_trained(windows, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    wide = 64
    model = nn.Sequential(
        nn.Linear(CONTEXT * LETTERS, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, LETTERS)
    )
    trained(model, windows, 500, 1e-2)
    return model


@pytest.fixture(scope="module")
def dense(windows) -> nn.Module:
    return fully_trained(windows, 0)


@pytest.fixture(scope="module")
def retrained(windows, dense):
    """Method -> losses before and after 1:4 is imposed at the end, the dense model teaching."""
    methods = {
        "sr_ste": sw.method("sr_ste", pattern="1:4"),
        "ast": sw.method("ast", pattern="1:4", train=AdamDecay(decay=6e-3)),
    }
    found = {n: trained(copy.deepcopy(dense), windows, STEPS, 3e-3, m, dense) for n, m in methods.items()}
    return found


def test_ast_loses_less_than_sr_ste_and_that_less_than_one_shot(windows, dense, retrained):
    pruned = copy.deepcopy(dense)
    sw.prune(pruned, sw.method("sparsegpt", pattern="1:4"), [windows[0][4096:8192]], progress=False)
    assert retrained["ast"][1] < retrained["sr_ste"][1] - 0.02 and retrained["sr_ste"][1] < held(pruned, windows)


def test_supports_of_ast_come_to_rest_and_those_of_sr_ste_do_not(retrained):
    """Flips of the last fifth over those of the first: 0.06 with AST, 0.4 with AST without decay, 1.1 with SR-STE."""

    def left(name):
        flips = retrained[name].flips
        return sum(n for step, n in flips if step > 0.8 * STEPS) / sum(n for step, n in flips if step <= 0.2 * STEPS)

    assert left("ast") < 0.12 and left("sr_ste") > 0.5


def test_a_pooled_branch_adds_a_gain_to_ast(windows, dense, retrained):
    """Groups of 8 inputs: loss 1.98 against 2.04."""
    model = copy.deepcopy(dense)
    pruned = sw.prune(copy.deepcopy(dense), sw.method("magnitude", pattern="1:4"), progress=False)
    add_branches(model, pruned.supports, pool=8)
    method = sw.method("ast", pattern="1:4", train=AdamDecay(decay=6e-3))
    assert trained(model, windows, STEPS, 3e-3, method, dense).after < retrained["ast"].after - 0.02


def test_cast_loses_less_than_ast_at_2_of_4_and_its_final_cut_changes_next_to_nothing(windows, dense):
    """Four dense models, 200 steps: 1.721 against 1.726 (better by 0.001 to 0.012), a cut of 0.0001 to 0.0013; the first two here.

    AST's decay is the best of 2e-3, 6e-3, 2e-2, 6e-2 and 0.2; at 400 steps the four are 1.678 against 1.682.
    """
    decays = {"ast": AdamDecay(decay=6e-2), "cast": AdamShrink(decay=0.1)}
    ahead = []
    for teacher in (dense, fully_trained(windows, 1)):
        ast, cast = (
            trained(copy.deepcopy(teacher), windows, STEPS, 3e-3, sw.method(n, train=d), teacher)
            for n, d in decays.items()
        )
        assert abs(cast.after - cast.before) < 0.005 * cast.before
        ahead.append(ast.after - cast.after)
    assert sum(ahead) / 2 > 0.004 and min(ahead) > 0, ahead


def test_in_few_steps_to_1_of_4_the_cut_of_cast_costs_more_than_ast(windows, dense, retrained):
    """Its `when_not`: four dense models 2.05 to 2.11, of which the cut is 0.03, AST 2.01 to 2.04."""
    cast = trained(
        copy.deepcopy(dense), windows, STEPS, 3e-3, sw.method("cast", pattern="1:4", train=AdamShrink(decay=0.1)), dense
    )
    assert cast.after - cast.before > 0.015 and cast.after > retrained["ast"].after + 0.015
