"""Do agents stay good while they become sparse? EauDeQN against a dense agent and fixed schedules on CartPole; schedules that oscillate on channel access.

CartPole-v1 of Gymnasium (`pip install 'sparseworks[rl]'`): deep Q-learning, networks 4-64-64-2, the return of 20 greedy games. Channel access:
three users, four channels, independent recurrent actors and one critic, successes a slot. Three seeds each.

    python benchmarks/weights/reinforcement.py --threads 1 --json reinforcement
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import arguments, store, table

import sparseworks as sw
from sparseworks.core.schedule import Cubic, Harmonic, Linear, Schedule
from sparseworks.evaluate import ChannelAccess, IndependentActors
from sparseworks.weights.settings import PacedQNetworks
from sparseworks.weights.train import Gradual, Regrow

UPDATE = 250
"""Environment steps between two target updates."""


class Found(NamedTuple):
    value: float
    sparsity: float


class Replay:
    """The last 10,000 transitions of CartPole."""

    def __init__(self, size: int = 10_000):
        self.state, self.after = torch.zeros(size, 4), torch.zeros(size, 4)
        self.action, self.reward, self.end = torch.zeros(size, dtype=torch.long), torch.zeros(size), torch.zeros(size)
        self.size, self.count = size, 0

    def add(self, state: np.ndarray, action: int, reward: float, after: np.ndarray, end: bool) -> None:
        at = self.count % self.size
        self.state[at], self.after[at] = torch.from_numpy(state), torch.from_numpy(after)
        self.action[at], self.reward[at], self.end[at] = action, reward, float(end)
        self.count += 1

    def loss(self, batch: int, g: torch.Generator) -> Callable[[nn.Module, nn.Module], Tensor]:
        """Huber loss of the TD error of one batch, the same for every network."""
        at = torch.randint(min(self.count, self.size), (batch,), generator=g)

        def loss(online: nn.Module, target: nn.Module) -> Tensor:
            with torch.no_grad():
                wanted = self.reward[at] + 0.99 * (1.0 - self.end[at]) * target(self.after[at]).max(dim=1).values
            value = online(self.state[at]).gather(1, self.action[at].unsqueeze(1)).squeeze(1)
            return nn.functional.smooth_l1_loss(value, wanted)

        return loss


class Single:
    """One online network under a sparsifier, dense or along a schedule that is fixed beforehand."""

    def __init__(self, network: nn.Module, density: float, updates: int):
        self.network, self.target = network, copy.deepcopy(network)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
        method = sw.method("gmp", pattern="global", density=density, train=Gradual(every=UPDATE // 2, stop=0.8))
        self.run = sw.Sparsifier(network, method, self.optimizer, steps=updates)

    def acting(self) -> nn.Module:
        return self.network

    def learn(self, loss: Callable[[nn.Module, nn.Module], Tensor]) -> None:
        self.optimizer.zero_grad()
        loss(self.network, self.target).backward()
        self.optimizer.step()
        self.run.step()

    def renew(self) -> None:
        self.target.load_state_dict(self.network.state_dict())

    @property
    def sparsity(self) -> float:
        return 1.0 - self.run.density


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def act(model: nn.Module, state: np.ndarray) -> int:
    with torch.no_grad():
        return int(model(torch.from_numpy(state)).argmax())


def cartpole(agent: Single | PacedQNetworks, seed: int, steps: int) -> Found:
    """Train by deep Q-learning, one update every second step; then the mean return of greedy games of the target network."""
    import gymnasium

    env, replay, g = gymnasium.make("CartPole-v1"), Replay(), torch.Generator().manual_seed(seed)
    state, _ = env.reset(seed=seed)
    for step in range(steps):
        random = float(torch.rand((), generator=g)) < max(0.05, 1.0 - step / (0.25 * steps))
        action = int(torch.randint(2, (), generator=g)) if random else act(agent.acting(), state)
        after, reward, end, cut, _ = env.step(action)
        replay.add(state, action, float(reward), after, end)
        state = env.reset()[0] if end or cut else after
        if step >= 500 and step % 2 == 0:
            agent.learn(replay.loss(64, g))
        if step > 500 and step % UPDATE == 0:
            agent.renew()
    if isinstance(agent, Single):
        agent.run.finish()
        agent.renew()
    returns = []
    for game in range(20):
        state, _ = env.reset(seed=10_000 + game)
        total, over = 0.0, False
        while not over:
            state, reward, end, cut, _ = env.step(act(agent.target, state))
            total, over = total + float(reward), end or cut
        returns.append(total)
    return Found(mean(returns), agent.sparsity)


def agents(steps: int) -> dict[str, Callable[[int], Single | PacedQNetworks]]:
    """The contenders."""
    found: dict[str, Callable[[int], Single | PacedQNetworks]] = {
        f"cubic to {s:.0%}": lambda seed, s=s: Single(network(seed), 1 - s, steps // 2) for s in (0.8, 0.95, 0.98)
    }
    return {
        "dense": lambda seed: Single(network(seed), 1.0, steps // 2),
        "eau_de_qn": lambda seed: PacedQNetworks(
            network(seed), lambda p: torch.optim.Adam(p, lr=5e-4), reach=0.1, seed=seed
        ),
        **found,
    }


def access(schedule: Schedule | None, density: float, seeds: int, updates: int) -> list[Found]:
    """Successes a slot of greedy games after training, seed by seed."""
    model, g = IndependentActors(ChannelAccess(), range(seeds)), torch.Generator().manual_seed(0)
    optimizer, run = torch.optim.Adam(model.parameters(), lr=5e-3), None
    if schedule is not None:
        method = sw.method(
            "gmp_harmonic", pattern=model.pattern, density=density, schedule=schedule, train=Regrow(every=5, stop=0.8)
        )
        run = sw.Sparsifier(model, method, optimizer, steps=updates, sites=model.sites)
    for _ in range(updates):
        optimizer.zero_grad()
        model.loss(model.play(32, 12, g)).backward()
        optimizer.step()
        if run:
            run.step()
    if run:
        run.finish()
    with torch.no_grad():
        played = model.play(256, 12, torch.Generator().manual_seed(1), greedy=True)
    return [Found(v, 1 - density if schedule else 0.0) for v in played.reward.mean(dim=(1, 2)).tolist()]


def cell(found: Sequence[Found]) -> list[str]:
    values = [f.value for f in found]
    spread = stdev(values) if len(values) > 1 else 0.0
    return [f"{mean(values):.3g} ± {spread:.2g}", f"{mean(f.sparsity for f in found):.1%}"]


def main() -> None:
    given = arguments(
        (__doc__ or "").split("\n")[0],
        steps={"type": int, "default": 30_000, "help": "steps in CartPole"},
        updates={"type": int, "default": 1000, "help": "updates of the actors"},
        seeds={"type": int, "default": 3, "help": "runs a cell"},
    )
    steps, updates, seeds = (1500, 10, 1) if given.quick else (given.steps, given.updates, given.seeds)
    poles = {name: [cartpole(make(s), s, steps) for s in range(seeds)] for name, make in agents(steps).items()}
    schedules = {"harmonic": Harmonic(), "cubic": Cubic(), "linear": Linear()}
    games = {"dense": access(None, 1.0, max(seeds, 5), updates)}
    games |= {
        f"{name}, {1 - d:.0%}": access(schedule, d, max(seeds, 5), updates)
        for d in (0.1, 0.05)
        for name, schedule in schedules.items()
    }
    table(
        f"CartPole after {steps} steps, {seeds} seeds",
        ("agent", "return", "sparsity"),
        [[n, *cell(f)] for n, f in poles.items()],
    )
    table(
        f"channel access after {updates} updates, {max(seeds, 5)} seeds",
        ("schedule", "successes a slot", "sparsity"),
        [[n, *cell(f)] for n, f in games.items()],
    )
    figures = {
        name: {n: [f._asdict() for f in found] for n, found in cells.items()}
        for name, cells in (("cartpole", poles), ("channel_access", games))
    }
    store("reinforcement", [], given.json, steps=steps, updates=updates, **figures)


if __name__ == "__main__":
    main()
