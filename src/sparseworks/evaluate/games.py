"""Small games for reinforcement learning, played by tensors: every state of a gridworld at once, many poles or channel-access games beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.errors import ShapeError


class Transitions(NamedTuple):
    """What happens after every action in every state; `end` marks steps into the goal."""

    state: Float[Tensor, "n features"]
    action: Int[Tensor, " n"]
    reward: Float[Tensor, " n"]
    after: Float[Tensor, "n features"]
    end: Bool[Tensor, " n"]


class Gridworld:
    """A maze drawn in text: `#` wall, `G` goal, anything else free. Four actions; into a wall means to stay; every step costs 1 / cells.

    Features of a state are its one-hot row and column, or its one-hot cell with `cells=True`.
    """

    ACTIONS = ((-1, 0), (0, 1), (1, 0), (0, -1))

    def __init__(self, maze: Sequence[str], *, cells: bool = False):
        if len({len(line) for line in maze}) != 1 or sum(line.count("G") for line in maze) != 1:
            raise ShapeError("A maze is lines of one length with exactly one goal `G`.")
        rows, cols = len(maze), len(maze[0])
        free = [(r, c) for r in range(rows) for c in range(cols) if maze[r][c] != "#"]
        index = {cell: i for i, cell in enumerate(free)}
        self.goal = next(i for i, (r, c) in enumerate(free) if maze[r][c] == "G")
        moved = [[index.get((r + dr, c + dc), index[r, c]) for dr, dc in self.ACTIONS] for r, c in free]
        self.moves: Int[Tensor, "states 4"] = torch.tensor(moved)
        at = torch.tensor(free)
        one_hot = torch.nn.functional.one_hot
        places = torch.cat([one_hot(at[:, 0], rows), one_hot(at[:, 1], cols)], dim=1)
        self.features: Float[Tensor, "states features"] = torch.eye(len(free)) if cells else places.float()

    def transitions(self) -> Transitions:
        """All of them, but for those out of the goal."""
        states = torch.arange(len(self.moves))
        state = states[states != self.goal].repeat_interleave(len(self.ACTIONS))
        action = torch.arange(len(self.ACTIONS)).repeat(len(self.moves) - 1)
        after = self.moves[state, action]
        end = after == self.goal
        reward = end.float() - 1.0 / len(self.moves)
        return Transitions(self.features[state], action, reward, self.features[after], end)

    def steps(self, action: Int[Tensor, " states"], limit: int = 100) -> Float[Tensor, " others"]:
        """Steps to the goal from every other state with one action a state, `limit` where it is not reached by then."""
        at = torch.arange(len(self.moves))
        taken = torch.full((len(at),), float(limit))
        for step in range(limit):
            taken = torch.where((at == self.goal) & (taken == limit), float(step), taken)
            at = torch.where(at == self.goal, at, self.moves[at, action[at]])
        return taken[torch.arange(len(at)) != self.goal]

    def shortest(self) -> Float[Tensor, " others"]:
        """Fewest steps to the goal from every other state."""
        found = torch.full((len(self.moves),), float("inf"))
        found[self.goal] = 0.0
        for _ in self.moves:
            found = torch.minimum(found, found[self.moves].min(dim=1).values + 1.0)
        return found[torch.arange(len(found)) != self.goal]


@dataclass(frozen=True)
class ChannelAccess:
    """Users send over channels of which one is taken by somebody they do not hear, and collide with one another.

    In every slot a user stays silent or sends on one channel. It succeeds alone on a channel that the primary user leaves free; the
    primary user is on channel (phase + hop t) mod channels, the phase is drawn for every game. A user sees what it did and whether it
    succeeded, nothing else. The reward of all is the number of successes.

    After the game of Stamatelis et al., 2025, arXiv 2503.15172, reduced.
    """

    users: int = 3
    channels: int = 4
    hop: int = 0

    @property
    def actions(self) -> int:
        """Silence is action 0, channel c action c + 1."""
        return self.channels + 1

    @property
    def seen(self) -> int:
        """Size of an observation: the action, one-hot, and success."""
        return self.actions + 1

    def begin(
        self, *batch: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Float[Tensor, "*batch users seen"]]:
        """Phases of new games, and first observations (nothing yet)."""
        phase = torch.randint(self.channels, batch, generator=generator)
        return phase, torch.zeros(*batch, self.users, self.seen)

    def primary(self, phase: Int[Tensor, "*batch"], slot: int) -> Int[Tensor, "*batch"]:
        """The channel that is taken."""
        return (phase + self.hop * slot) % self.channels

    def step(
        self, phase: Int[Tensor, "*batch"], slot: int, action: Int[Tensor, "*batch users"]
    ) -> tuple[Float[Tensor, "*batch users seen"], Float[Tensor, "*batch"]]:
        """Observations and rewards of one slot."""
        chosen = torch.nn.functional.one_hot(action, self.actions).float()
        busy = chosen.sum(dim=-2)
        busy[..., 0] = 2.0  # silence is no success
        taken = torch.nn.functional.one_hot(self.primary(phase, slot) + 1, self.actions).float()
        won = (chosen * ((busy + taken) == 1.0).float().unsqueeze(-2)).sum(dim=-1)
        return torch.cat([chosen, won.unsqueeze(-1)], dim=-1), won.sum(dim=-1)


@dataclass(frozen=True)
class CartPole:
    """A pole of 1 m stands on a cart that is pushed to the left (action 0) or to the right (1), 50 times a second; it must not fall.

    States are position, velocity, angle and angular velocity; the pole has fallen beyond 12 degrees, or with the cart beyond 2.4 m.

    Source: Barto, Sutton and Anderson, 1983, with the constants and Euler's rule of Gymnasium's CartPole-v1, which ends after `limit` steps.
    """

    limit: int = 500

    def begin(self, *batch: int, generator: torch.Generator | None = None) -> Float[Tensor, "*batch 4"]:
        """States near the upright pole at rest, each entry within 0.05."""
        return torch.rand(*batch, 4, generator=generator) * 0.1 - 0.05

    def step(
        self, state: Float[Tensor, "*batch 4"], action: Int[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, "*batch 4"], Bool[Tensor, "*batch"]]:
        """The states a fiftieth of a second later, and who has fallen."""
        place, speed, angle, turn = state.unbind(-1)
        sine, cosine, half, light, mass = angle.sin(), angle.cos(), 0.5, 0.1, 1.1
        pushed = ((2.0 * action - 1.0) * 10.0 + light * half * turn.square() * sine) / mass
        bend = (9.8 * sine - cosine * pushed) / (half * (4.0 / 3.0 - light * cosine.square() / mass))
        drive = pushed - light * half * bend * cosine / mass
        after = torch.stack(
            [place + 0.02 * speed, speed + 0.02 * drive, angle + 0.02 * turn, turn + 0.02 * bend], dim=-1
        )
        return after, (after[..., 0].abs() > 2.4) | (after[..., 2].abs() > math.radians(12))
