"""Dynamic memory sparsification: letting go some steps later, against at once, and against caches that are not trained, at equal size."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import sparseworks as sw
from sparseworks.attention.cache.scores import WindowVote
from sparseworks.attention.masks import Window
from sparseworks.attention.trained import attach, distillation, training

LENGTH, END, NEAR, MARK = 48, 6, 1, 2
METHOD = sw.method("dms", window=4, ratio=6.0)


def rows(n, seed):
    """A mark among the first 24 tokens is asked for by each of the last six; before, `NEAR` asks now and then for the token before it."""
    g = torch.Generator().manual_seed(seed)
    ids, kind = torch.randint(60, 76, (n, LENGTH), generator=g), torch.randint(0, 10, (n,), generator=g)
    ids[torch.arange(n), torch.randint(1, LENGTH // 2, (n,), generator=g)] = 16 + kind
    asks = torch.rand(n, LENGTH, generator=g) < 0.25
    asks[:, : LENGTH // 2] = asks[:, -END - 1 :] = False
    asks[:, 1:] &= ~asks[:, :-1]
    wanted = torch.where(asks, ids.roll(1, 1), -100)
    ids[asks], ids[:, 0], ids[:, -END:], wanted[:, -END:] = NEAR, 0, MARK, 3 + kind[:, None]
    return ids, wanted


def finished(tools, seed):
    """A dense layer that answers both."""
    model = tools.tiny(seed, num_hidden_layers=1).train()
    optimiser = torch.optim.Adam(model.parameters(), 4e-3)
    for step in range(160):
        ids, wanted = rows(24, 10_000 * seed + step)
        loss = F.cross_entropy(model(ids, use_cache=False).logits.flatten(0, 1), wanted.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def distilled(teacher, method, seed, steps=50):
    """Model and gates, trained to answer as the teacher does. A gain of 100 wants small steps."""
    model = copy.deepcopy(teacher).train()
    attached = attach(model, method)
    rest = [p for name, p in model.named_parameters() if "sparse_gate" not in name]
    torch.manual_seed(seed)
    optimiser = torch.optim.Adam([{"params": rest}, {"params": attached.parameters(), "lr": 3e-4}], 2e-3)
    for step in range(steps):
        ids, wanted = rows(24, 10_000 * seed + 5000 + step)
        attached.set_progress(min(1.0, step / (0.7 * steps)))
        with torch.no_grad():
            answers = teacher(ids, use_cache=False).logits[wanted >= 0]
        with training(attached):
            logits = model(ids, use_cache=False).logits[wanted >= 0]
        loss = distillation(logits, answers) + attached.loss()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    attached.set_progress(1.0)
    return model.eval(), attached


IDS, WANTED = rows(64, 10**8)


def right(logits):
    """Of what is asked for at once, and of marks; the less of both."""
    hit = logits.argmax(-1) == WANTED
    near = hit[:, :-END][WANTED[:, :-END] >= 0]
    return min(float(near.float().mean()), float(hit[:, -END:].float().mean()))


@torch.no_grad()
def held(tools, model, *methods):
    """Generated token by token: the score, and the tokens that the cache held in the end."""
    with sw.attention(model, *methods) as run:
        return right(tools.step_by_step(model, run, IDS, 1)), run.held.tokens


@pytest.mark.parametrize("seed", [0, 1])
def test_what_goes_late_was_read_by_its_neighbours(tools, seed):
    teacher = finished(tools, seed)
    model, attached = distilled(teacher, METHOD, seed)
    (gate,) = attached.modules.values()
    found = {"dense": right(teacher(IDS, use_cache=False).logits)}
    found["delayed"], size = held(tools, model, *METHOD.export())
    with training(attached), torch.no_grad():
        model(IDS, use_cache=False)
    density = attached.density
    gate.spec = replace(gate.spec, window=0)
    found["at once"], _ = held(tools, model, *METHOD.export())
    for name, score in (("h2o", None), ("last query", WindowVote(1, 1))):
        cache = sw.method("h2o", density=density, always=Window(2))
        found[name], other = held(tools, teacher, cache if score is None else cache.with_(score=score))
        assert other > 0.95 * size, (name, other, size)
    assert density < 0.35, density
    assert found["delayed"] > found["dense"] - 0.03, found
    assert found["delayed"] > max(found["at once"], found["h2o"], found["last query"]) + 0.3, found
