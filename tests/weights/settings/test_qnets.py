"""Q-networks that prune at the agent's pace: who becomes the target, what the others become, and where they stop on two mazes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.evaluate import Gridworld
from sparseworks.weights.settings import PacedQNetworks
from sparseworks.weights.train import Gradual


def network(seed: int = 0, inputs: int = 6, width: int = 24) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))


def adam(parameters):
    return torch.optim.Adam(parameters, lr=2e-3, fused=True)


def toward(scale: float):
    """A loss that differs from network to network."""
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    return lambda online, target: nn.functional.mse_loss(online(x), scale * target(x).detach() + 1.0)


def test_the_network_of_smallest_loss_becomes_the_target_and_one_copy_stays_as_sparse():
    agent = PacedQNetworks(network(), adam, count=4, reach=0.5, seed=3)
    for update in range(3):
        before = agent.sparsity
        for _ in range(2):
            agent.learn(toward(0.5))
        rivals, totals = agent.rivals, [r.loss for r in agent.rivals]
        best = agent.renew()
        assert best is rivals[totals.index(min(totals))]
        assert agent.sparsity == best.sparsity >= before and agent.supports == best.supports
        assert agent.history[update] == (best.sparsity, best.loss / 2)
        for mine, theirs in zip(agent.target.parameters(), best.network.parameters(), strict=True):
            assert torch.equal(mine, theirs)
        first = agent.rivals[0]
        assert first.supports == best.supports and first.loss == 0.0
        assert all(
            torch.equal(a, b) for a, b in zip(first.network.parameters(), best.network.parameters(), strict=True)
        )


def test_copies_are_pruned_by_magnitude_with_their_moments_and_stay_so():
    agent = PacedQNetworks(network(), adam, count=3, reach=0.6, seed=1)
    agent.learn(toward(0.5))
    chosen = copy.deepcopy(agent.renew().network)
    sites = {s.name: s for s in agent.sites}
    for rival in agent.rivals[1:]:
        sizes = torch.cat([s.read(chosen).abs().flatten() for s in agent.sites])
        kept = round((1 - rival.sparsity) * sizes.numel())
        cut = sizes.sort(descending=True).values[kept - 1]
        for name, support in rival.supports.items():
            whole, mask = sites[name].read(chosen), support.mask()
            assert torch.equal(mask, whole.abs() >= cut) and torch.equal(sites[name].read(rival.network), whole * mask)
            moment = rival.optimizer.state[sites[name].tensor(rival.network)]["exp_avg"]
            assert not moment[~mask].any() and moment[mask].any()
        assert agent.sparsity < rival.sparsity < agent.sparsity + (1 - agent.sparsity) * 0.6
    agent.learn(toward(0.5))
    for rival in agent.rivals:
        assert not any(sites[n].read(rival.network)[~s.mask()].any() for n, s in rival.supports.items())


def test_sparsities_are_drawn_up_to_the_reach_and_the_most():
    agent = PacedQNetworks(network(), adam, count=5, reach=0.25, seed=7)
    draws = torch.rand(4, generator=torch.Generator().manual_seed(7)).sort().values
    found = torch.tensor([r.sparsity for r in agent.rivals])
    assert torch.allclose(found, torch.cat([torch.zeros(1), 0.25 * draws]), atol=1e-3)
    capped = PacedQNetworks(network(), adam, count=5, reach=1.0, most=0.3, seed=7)
    assert max(r.sparsity for r in capped.rivals) == pytest.approx(0.3, abs=1e-3)


def test_one_of_the_online_networks_acts_and_all_take_their_turn():
    agent = PacedQNetworks(network(), adam, count=3)
    assert {id(agent.acting()) for _ in range(40)} == {id(r.network) for r in agent.rivals}


def test_what_cannot_work_is_refused():
    for wrong in ({"count": 1}, {"reach": 0.0}, {"most": 1.0}):
        with pytest.raises(BudgetError):
            PacedQNetworks(network(), adam, **wrong)
    with pytest.raises(ModelError, match="Nothing to prune"):
        PacedQNetworks(network(), adam, skip=("*",))
    with pytest.raises(ModelError, match="call `learn`"):
        PacedQNetworks(network(), adam).renew()


def test_an_agent_of_gymnasium_learns_sparser_networks():
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'sparseworks[rl]'")
    env = gymnasium.make("CartPole-v1")
    agent = PacedQNetworks(network(inputs=4), adam, count=3, reach=0.5)
    state, _ = env.reset(seed=0)
    seen = []
    for step in range(120):
        with torch.no_grad():
            action = int(agent.acting()(torch.from_numpy(state))[:2].argmax())
        after, reward, end, cut, _ = env.step(action)
        seen.append((torch.from_numpy(state), action, float(reward), torch.from_numpy(after), end))
        state = env.reset(seed=step)[0] if end or cut else after
        if step % 10 == 9:
            x, a, r, after_x, over = (
                torch.stack(c) if torch.is_tensor(c[0]) else torch.tensor(c) for c in zip(*seen[-32:], strict=True)
            )

            def loss(online, target, x=x, a=a, r=r, y=after_x, over=over):
                wanted = r + 0.9 * target(y)[:, :2].detach().max(dim=1).values * ~over
                return nn.functional.mse_loss(online(x).gather(1, a.unsqueeze(1)).squeeze(1), wanted)

            agent.learn(loss)
            if step % 40 == 39:
                agent.renew()
    assert len(agent.history) == 3 and agent.sparsity == pytest.approx(
        1 - sum(s.count for s in agent.supports.values()) / sum(s.size for s in agent.supports.values())
    )


def test_an_agent_prunes_as_far_as_it_can_and_a_fixed_schedule_further_than_it_should():
    world = Gridworld(["......", ".####.", "....#.", ".##.#.", ".#..#.", "...#.G"])
    moves, limit = world.transitions(), 50

    def loss(online, target):
        with torch.no_grad():
            wanted = moves.reward + 0.95 * ~moves.end * target(moves.after).max(dim=1).values
        return nn.functional.mse_loss(online(moves.state).gather(1, moves.action[:, None])[:, 0], wanted)

    def score(model):  # of the best that is possible
        with torch.no_grad():
            steps = world.steps(model(world.features).argmax(dim=1), limit)
        return float((limit - steps).mean() / (limit - world.shortest()).mean())

    agent = PacedQNetworks(network(inputs=12, width=64), adam, count=5, reach=0.1)
    for _ in range(40):
        for _ in range(20):
            agent.learn(loss)
        agent.renew()
    sparsities = [sparsity for sparsity, _ in agent.history]
    assert score(agent.target) >= 0.95 and agent.sparsity > 0.4 and sparsities == sorted(sparsities)

    online = network(inputs=12, width=64)
    optimizer, target = adam(online.parameters()), copy.deepcopy(online)
    method = sw.method("gmp", pattern="global", density=0.05, train=Gradual(every=20))
    run = sw.Sparsifier(online, method, optimizer, steps=800)
    for step in range(800):
        optimizer.zero_grad()
        loss(online, target).backward()
        optimizer.step()
        run.step()
        if step % 20 == 19:
            target.load_state_dict(online.state_dict())
    run.finish()
    assert score(online) < 0.7
