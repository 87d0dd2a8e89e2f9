"""Independent recurrent actors with one critic on a channel-access game, several seeds beside each other in the same tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.pattern import Pattern, Tile
from sparseworks.core.site import Site
from sparseworks.evaluate.games import ChannelAccess


class Played(NamedTuple):
    """Games of `slots` slots: log-probabilities and entropies of all users' actions, rewards and values of every slot."""

    log_probability: Float[Tensor, "seeds batch slots users"]
    entropy: Float[Tensor, "seeds batch slots users"]
    reward: Float[Tensor, "seeds batch slots"]
    value: Float[Tensor, "seeds batch slots"]


class IndependentActors(nn.Module):
    """h' = tanh(W [x, h] + b), logits = V h' + c for every user of every seed; one critic a seed sees all observations and the primary user.

    Matrices of all seeds and users are rows of one parameter, so that a batched product serves them all; `sites` and `pattern`
    give every one of them its own budget. Heads are dense, they are small.

    After the framework of Stamatelis et al., 2025, arXiv 2503.15172 (independent actors, global critic).
    """

    def __init__(self, game: ChannelAccess, seeds: Sequence[int], width: int = 32):
        super().__init__()
        self.game, self.seeds, self.width = game, len(seeds), width
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        wide = game.seen + width
        told = game.users * game.seen + game.channels

        def drawn(rows: int, cols: int, scale: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.cat([torch.randn(rows, cols, generator=g) * scale / cols**0.5 for g in draws]))

        self.core = drawn(game.users * width, wide)
        self.bias = nn.Parameter(torch.zeros(len(seeds), game.users, width))
        self.head = drawn(game.users * game.actions, width, 0.1)
        self.judge = drawn(width, told)
        self.judge_bias = nn.Parameter(torch.zeros(len(seeds), 1, width))
        self.judge_head = drawn(1, width, 0.1)

    @property
    def sites(self) -> list[Site]:
        """The actors' matrices and the critics'."""
        return [
            Site(name, "linear", name, (p.shape[0], p.shape[1]))
            for name, p in (("core", self.core), ("judge", self.judge))
        ]

    @property
    def pattern(self) -> Pattern:
        """Entries compete within the matrix of one user, or of one critic."""
        return Pattern(group=Tile(self.width, None))

    def play(self, games: int, slots: int, generator: torch.Generator, *, greedy: bool = False) -> Played:
        """Play `games` games a seed."""
        game, shape = self.game, (self.seeds, self.game.users)
        core = self.core.view(*shape, self.width, -1).transpose(-1, -2)
        head = self.head.view(*shape, game.actions, self.width).transpose(-1, -2)
        judge = self.judge.view(self.seeds, self.width, -1).transpose(-1, -2)
        judge_head = self.judge_head.view(self.seeds, self.width, 1)
        phase, seen = game.begin(self.seeds, games, generator=generator)
        hidden = torch.zeros(*shape, games, self.width)
        found: list[tuple[Tensor, ...]] = []
        for slot in range(slots):
            primary = nn.functional.one_hot(game.primary(phase, slot), game.channels).float()
            x = torch.cat([seen.flatten(-2), primary], dim=-1)
            value = (torch.tanh(x @ judge + self.judge_bias) @ judge_head).squeeze(-1)
            hidden = torch.tanh(torch.cat([seen.transpose(1, 2), hidden], dim=-1) @ core + self.bias.unsqueeze(2))
            logits = (hidden @ head).transpose(1, 2).log_softmax(dim=-1)
            odds = logits.detach().exp()
            action = (
                odds.argmax(dim=-1)
                if greedy
                else torch.multinomial(odds.flatten(0, 2), 1, generator=generator).view(odds.shape[:-1])
            )
            seen, reward = game.step(phase, slot, action)
            chosen = logits.gather(-1, action.unsqueeze(-1)).squeeze(-1)
            found.append((chosen, -(logits.exp() * logits).sum(dim=-1), reward, value))
        return Played(*(torch.stack(parts, dim=2) for parts in zip(*found, strict=True)))

    def loss(self, played: Played, *, discount: float = 0.9, entropy: float = 0.01) -> Tensor:
        """Advantage actor-critic, summed over seeds: -log pi (R - V) - entropy + (R - V)^2 / 2, R the discounted rewards to come."""
        to_come, total = [], torch.zeros_like(played.reward[..., 0])
        for slot in reversed(range(played.reward.shape[-1])):
            total = played.reward[..., slot] + discount * total
            to_come.append(total)
        error = torch.stack(to_come[::-1], dim=-1) - played.value
        actors = -(played.log_probability * error.detach().unsqueeze(-1) + entropy * played.entropy).sum(dim=-1)
        return (actors + error.square() / 2).mean(dim=(1, 2)).sum()
