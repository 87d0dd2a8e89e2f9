"""Do agents stay good while they become sparse? EauDeQN against a dense agent and fixed schedules on CartPole and in mazes; schedules that oscillate on channel access.

"pole": deep Q-learning of CartPole, networks 4-64-64-2, the return of 20 greedy games. "maze":
two mazes, every step of all of them in each batch, steps to the goal. "access": three users, four channels, independent recurrent actors and
one critic, successes a slot, where all come to send on a channel of their own; "moving": two users, three channels, and the one that is
taken moves on in every slot, so that it pays to remember.

    python benchmarks/weights/reinforcement.py --threads 1 --json reinforcement
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import arguments
from rows import Row, Rows, record_of

import sparseworks as sw
from sparseworks.core.schedule import Cubic, Harmonic, Linear, Schedule
from sparseworks.evaluate import CartPole, ChannelAccess, Gridworld, IndependentActors
from sparseworks.weights.settings import PacedQNetworks
from sparseworks.weights.train import Gradual, Regrow

UPDATE = 125
"""Environment steps between two target updates."""


BATCH = 64
GAMES, SLOTS = 32, 12
"""Of channel access, an update."""


class Replay:
    """The last 10,000 transitions of CartPole."""

    def __init__(self, size: int = 10_000):
        self.state, self.after = torch.zeros(size, 4), torch.zeros(size, 4)
        self.action, self.reward, self.end = torch.zeros(size, dtype=torch.long), torch.zeros(size), torch.zeros(size)
        self.size, self.count = size, 0

    def add(self, state: Tensor, action: int, after: Tensor, end: bool) -> None:
        at = self.count % self.size
        self.state[at], self.after[at] = state, after
        self.action[at], self.reward[at], self.end[at] = action, 1.0, float(end)
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

    def __init__(
        self, network: nn.Module, density: float, updates: int, *, rate: float = 5e-4, every: int = UPDATE // 2
    ):
        self.network, self.target = network, copy.deepcopy(network)
        self.size = self.aim = sum(s.size for s in sw.sites(network))
        self.optimizer = torch.optim.Adam(network.parameters(), lr=rate)
        self.method = sw.method("gmp", pattern="global", density=density, train=Gradual(every=every, stop=0.8))
        self.run = sw.Sparsifier(network, self.method, self.optimizer, steps=updates)

    def acting(self) -> nn.Module:
        return self.network

    def learn(self, loss: Callable[[nn.Module, nn.Module], Tensor]) -> None:
        self.optimizer.zero_grad()
        loss(self.network, self.target).backward()
        self.optimizer.step()
        self.run.step()

    def renew(self) -> None:
        self.target.load_state_dict(self.network.state_dict())
        self.aim = round(self.run.density * self.size)

    @property
    def supports(self) -> Mapping[str, sw.Support]:
        return self.run.supports

    def flops(self) -> float:
        """Of one update."""
        return BATCH * (6.0 * self.run.density * self.size + 2.0 * self.aim)


def paced_flops(agent: PacedQNetworks) -> float:
    """Of one update: three products with every online network, one with the target for each."""
    aim = sum(s.count for s in agent.supports.values())
    return BATCH * sum(6.0 * sum(s.count for s in rival.supports.values()) + 2.0 * aim for rival in agent.rivals)


def network(seed: int, seen: int = 4, actions: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(seen, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, actions))


def cartpole(agent: Single | PacedQNetworks, seed: int, steps: int) -> tuple[float, float]:
    """Deep Q-learning, one update every second step: the mean return of greedy games of the target network, and FLOPs of the updates."""
    game, replay, g = CartPole(), Replay(), torch.Generator().manual_seed(seed)
    state, age, flops = game.begin(generator=g), 0, 0.0
    for step in range(steps):
        if float(torch.rand((), generator=g)) < max(0.05, 1.0 - step / (0.25 * steps)):
            action = torch.randint(2, (), generator=g)
        else:
            with torch.no_grad():
                action = agent.acting()(state).argmax()
        after, fallen = game.step(state, action)
        age, end = age + 1, bool(fallen)
        replay.add(state, int(action), after, end)
        over = end or age == game.limit
        state, age = (game.begin(generator=g), 0) if over else (after, age)
        if step >= 500 and step % 2 == 0:
            flops += agent.flops() if isinstance(agent, Single) else paced_flops(agent)
            agent.learn(replay.loss(BATCH, g))
        if step > 500 and step % UPDATE == 0:
            agent.renew()
    if isinstance(agent, Single):
        agent.run.finish()
        agent.renew()
    return played(agent.target, game), flops


@torch.no_grad()
def played(model: nn.Module, game: CartPole) -> float:
    """Mean return of 20 greedy games."""
    state, alive = game.begin(20, generator=torch.Generator().manual_seed(10_000)), torch.ones(20, dtype=torch.bool)
    total = torch.zeros(20)
    for _ in range(game.limit):
        total += alive
        state, fallen = game.step(state, model(state).argmax(dim=-1))
        alive &= ~fallen
    return float(total.mean())


def agent_of(name: str, density: float, seed: int, steps: int) -> Single | PacedQNetworks:
    """EauDeQN, or one network down to a density along a fixed schedule."""
    if name == "eau_de_qn":
        return PacedQNetworks(network(seed), lambda p: torch.optim.Adam(p, lr=5e-4), reach=0.1, seed=seed)
    return Single(network(seed), density, steps // 2)


def pole(name: str, density: float, seed: int, steps: int) -> Row:
    """One agent; the density of EauDeQN is what it came to."""
    began, agent = time.perf_counter(), agent_of(name, density, seed, steps)
    value, flops = cartpole(agent, seed, steps)
    found = agent.supports
    record = record_of(
        None if name == "dense" else agent.method, found, network(seed), task=f"CartPole, {steps} steps",
        metric="return of 20 greedy games", value=value, epochs=BATCH / 2, examples=steps, training_flops=flops, seed=seed,
        data=f"{steps} steps, an update every second one",
    )  # fmt: skip
    if name == "eau_de_qn":
        record = replace(record, start="dense-to-sparse", dynamic=True, when="during")
        density = record.kept / sum(s.size for s in found.values())
    return Row(name, density, record, time.perf_counter() - began)


def levelled(found: Sequence[Row]) -> list[Row]:
    """Nobody asks EauDeQN for its density, so it stands at the mean of what it came to in a game."""
    mine = [r for r in found if r.label == "eau_de_qn"]
    mean_of = {
        task: round(mean(r.density for r in mine if r.record.task == task), 2) for task in {r.record.task for r in mine}
    }
    return [replace(r, density=mean_of[r.record.task]) if r in mine else r for r in found]


MAZES = {
    "maze of 6 x 6": ("......", ".####.", "....#.", ".##.#.", ".#..#.", "...#.G"),
    "maze of 10 x 10": (
        "..........", ".########.", ".#......#.", ".#.####.#.", ".#.#..#.#.", ".#.##.#.#.", ".#....#.#.", ".######.#.",
        "........#.", "#######..G",
    ),
}  # fmt: skip
MAZE_UPDATE, LIMIT = 100, 100


def walk(maze: str, name: str, density: float, seed: int, updates: int) -> Row:
    """Steps saved on the way to the goal, per cent of what the shortest ways save of `LIMIT`; batches of all steps of the maze."""
    began, world = time.perf_counter(), Gridworld(MAZES[maze])
    moves, seen = world.transitions(), world.features.shape[1]

    def loss(online: nn.Module, target: nn.Module) -> Tensor:
        with torch.no_grad():
            wanted = moves.reward + 0.95 * ~moves.end * target(moves.after).max(dim=1).values
        return nn.functional.mse_loss(online(moves.state).gather(1, moves.action[:, None])[:, 0], wanted)

    drawn, agent = network(seed, seen, 4), None
    if name == "eau_de_qn":
        agent = PacedQNetworks(drawn, lambda p: torch.optim.Adam(p, lr=2e-3), seed=seed)
    else:
        agent = Single(drawn, density, updates * MAZE_UPDATE, rate=2e-3, every=20)
    flops = 0.0
    for _ in range(updates):
        spent = agent.flops() if isinstance(agent, Single) else paced_flops(agent)
        flops += MAZE_UPDATE * spent * len(moves.state) / BATCH
        for _ in range(MAZE_UPDATE):
            agent.learn(loss)
        agent.renew()
    if isinstance(agent, Single):
        agent.run.finish()
        agent.renew()
    with torch.no_grad():
        steps = world.steps(agent.target(world.features).argmax(dim=1), LIMIT)
    saved = 100 * float((LIMIT - steps).mean() / (LIMIT - world.shortest()).mean())
    record = record_of(
        None if name == "dense" else agent.method, agent.supports, network(seed, seen, 4), task=maze, seed=seed, value=saved,
        metric="steps saved, % of what is possible", epochs=updates * MAZE_UPDATE, examples=len(moves.state), training_flops=flops,
        data=f"{updates} target updates of {MAZE_UPDATE} steps",
    )  # fmt: skip
    if name == "eau_de_qn":
        record = replace(record, start="dense-to-sparse", dynamic=True, when="during")
        density = record.kept / sum(s.size for s in agent.supports.values())
    return Row(name, density, record, time.perf_counter() - began)


STILL, MOVING = ChannelAccess(), ChannelAccess(users=2, channels=3, hop=1)


def access(
    name: str, schedule: Schedule | None, density: float, seeds: int, updates: int, game: ChannelAccess = STILL
) -> list[Row]:
    """Successes a slot of greedy games after training, seed by seed."""
    began, model, g = time.perf_counter(), IndependentActors(game, range(seeds)), torch.Generator()
    g.manual_seed(0)
    optimizer, run, method, flops = torch.optim.Adam(model.parameters(), lr=5e-3), None, None, 0.0
    listed, heads = model.sites, model.head.numel() + model.judge_head.numel()
    if schedule is not None:
        method = sw.method(
            "gmp_harmonic", pattern=model.pattern, density=density, schedule=schedule, train=Regrow(every=5, stop=0.8)
        )
        run = sw.Sparsifier(model, method, optimizer, steps=updates, sites=listed)
    size = sum(s.size for s in listed)
    for _ in range(updates):
        optimizer.zero_grad()
        model.loss(model.play(GAMES, SLOTS, g), entropy=0.03 if game.hop else 0.01).backward()
        optimizer.step()
        flops += 6.0 * GAMES * SLOTS * ((run.density if run else 1.0) * size + heads) / seeds
        if run:
            run.step()
    supports = run.finish() if run else {}
    with torch.no_grad():
        played = model.play(256, SLOTS, torch.Generator().manual_seed(1), greedy=True)
    kept = (sum(s.count for s in supports.values()) if run else size) // seeds
    known: dict[str, Any] = {
        "task": "channel access, two users, the taken channel moves" if game.hop else "channel access, three users", "metric": "successes a slot", "epochs": 1, "examples": updates * GAMES * SLOTS,
        "data": f"{updates} updates of {GAMES} games of {SLOTS} slots", "training_flops": flops, "kept": kept,
        "inference_flops": 2.0 * kept, "parent": sum(p.numel() for p in model.parameters()) // seeds,
        "densities": {s.name: supports[s.name].density if run else 1.0 for s in listed},
    }  # fmt: skip
    values, spent = played.reward.mean(dim=(1, 2)).tolist(), (time.perf_counter() - began) / seeds
    found = [record_of(method, supports, model, value=value, seed=seed, **known) for seed, value in enumerate(values)]
    return [
        Row(name, density, replace(record, structure="one budget a matrix") if run else record, spent)
        for record in found
    ]


PARTS = ("pole", "maze", "access", "moving")


def main() -> None:
    given = arguments(
        (__doc__ or "").split("\n")[0],
        steps={"type": int, "default": 20_000, "help": "steps in CartPole"},
        updates={"type": int, "default": 1000, "help": "updates of the actors"},
        seeds={"type": int, "default": 3, "help": "runs a cell of CartPole; of the others five"},
        parts={"nargs": "+", "default": PARTS, "choices": PARTS, "help": "games"},
    )
    steps, updates, seeds = (1500, 10, 1) if given.quick else (given.steps, given.updates, given.seeds)
    setting = {"steps": steps, "updates": updates, "seeds": seeds}
    where = {"folder": given.json.parent / "journals"} if given.json and given.json.parent != Path() else {}
    name = "reinforcement" if given.parts == PARTS else "_".join(["reinforcement", *given.parts])
    rows = Rows(name, setting, quick=given.quick, **where)
    if "pole" in given.parts:
        for seed in range(seeds):
            for label, density in (("dense", 1.0), ("cubic", 0.05), ("eau_de_qn", 0.0), ("cubic", 0.2)):
                rows.add(f"{label} {density} {seed}", partial(pole, label, density, seed, steps))
    together, walks = (1, 2) if given.quick else (max(seeds, 5), 60)
    for maze in MAZES if "maze" in given.parts else ():
        for seed in range(together):
            for label, density in (("dense", 1.0), ("cubic", 0.2), ("cubic", 0.05), ("eau_de_qn", 0.0)):
                rows.add(f"{maze} {label} {density} {seed}", partial(walk, maze, label, density, seed, walks))
    for part, game, densities in (("access", STILL, (0.1, 0.05)), ("moving", MOVING, (0.05, 0.02))):
        if part not in given.parts:
            continue
        many = together if part == "access" else 2 * together
        rows.add(f"{part} dense", partial(access, "dense", None, 1.0, many, updates, game))
        for density in densities:
            for label, schedule in (("harmonic", Harmonic()), ("cubic", Cubic()), ("linear", Linear())):
                make = partial(access, label, schedule, density, many, updates, game)
                rows.add(f"{part} {label} {density}", make)
    rows.rows = levelled(rows.rows)
    rows.show()
    rows.store(given.json)


if __name__ == "__main__":
    main()
