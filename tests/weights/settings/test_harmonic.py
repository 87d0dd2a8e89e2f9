"""A ramp that oscillates, in a channel-access game of three users: every user's network keeps to its own budget, and weights return."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import sparseworks as sw
from sparseworks.core.schedule import Cubic, Harmonic
from sparseworks.evaluate import ChannelAccess, IndependentActors
from sparseworks.weights.train import Regrow

UPDATES = 40


@pytest.mark.parametrize(("schedule", "phases"), [(Harmonic(), 2), (Cubic(), 0)], ids=["harmonic", "cubic"])
def test_only_an_oscillating_ramp_gives_users_weights_back_and_all_arrive_at_five_per_cent(schedule, phases):
    game = ChannelAccess()
    model, g = IndependentActors(game, (0, 1), width=16), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    method = sw.method(
        "gmp_harmonic", density=0.05, pattern=model.pattern, schedule=schedule, train=Regrow(every=1, stop=0.8)
    )
    run = sw.Sparsifier(model, method, optimizer, steps=UPDATES, sites=model.sites)
    kept, came = [], 0
    for update in range(UPDATES):
        before = run.supports["core"].mask()
        optimizer.zero_grad()
        model.loss(model.play(4, 6, g), discount=0.5, entropy=0.2).backward()
        optimizer.step()
        run.step()
        now = run.supports["core"].mask()
        users = now.view(2 * game.users, -1).sum(dim=1)
        share = schedule((update + 1) / UPDATES / 0.8)
        wanted = (1 - 0.95 * share) * before[: model.width].numel()
        assert users.max() - users.min() <= 1 and float(users.float().mean()) == pytest.approx(wanted, abs=1)
        kept.append(int(users.sum()))
        came += int((now & ~before).sum())
    rises = [b > a for a, b in pairwise(kept)]
    assert sum(up and not was for was, up in pairwise([False, *rises])) >= phases
    assert came > 100 or not phases
    supports = run.finish()
    assert all(s.density == pytest.approx(0.05, abs=0.01) for s in supports.values())
