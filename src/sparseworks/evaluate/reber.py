"""The Reber grammar: strings that a small automaton accepts, and near misses that it does not; a task for recurrent networks."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.errors import BudgetError

SYMBOLS = "BTSXPVE"
NEXT: tuple[dict[str, int], ...] = (
    {"B": 1},
    {"T": 2, "P": 3},
    {"S": 2, "X": 4},
    {"T": 3, "V": 5},
    {"X": 3, "S": 6},
    {"P": 4, "V": 6},
    {"E": 7},
    {},
)
"""State -> symbol -> state; a string is accepted if it ends in the last one."""
SHORTEST = 5


def accepts(string: str) -> bool:
    """Whether the grammar generates the string, as it does BTXSE and BPVVE (Reber, 1967)."""
    state = 0
    for symbol in string:
        if symbol not in NEXT[state]:
            return False
        state = NEXT[state][symbol]
    return state == len(NEXT) - 1


@dataclass(frozen=True)
class Reber:
    """Strings, and whether the grammar accepts them.

    Attributes:
        symbols: place in `SYMBOLS` of every symbol; behind the end of a string, -1.
        lengths: symbols of each string.
        valid: 1 = accepted.
    """

    symbols: Int[Tensor, "n longest"]
    lengths: Int[Tensor, " n"]
    valid: Int[Tensor, " n"]

    @classmethod
    def draw(cls, n: int, *, longest: int = 16, seed: int = 0) -> Reber:
        """`n` different strings of at most `longest` symbols in random order, valid and invalid in turn before that.

        A valid string follows one of the two ways out of every state with equal chance; an invalid one is such a string with one
        symbol between its first and last exchanged.

        Raises:
            BudgetError: fewer than two strings, or more than there are of that length.
        """
        if n < 2 or n > _accepted(longest):
            raise BudgetError(
                f"The grammar has {_accepted(longest)} strings of at most {longest} symbols; asked for were {n} in all, half of them "
                "valid. Allow longer ones, or take between 2 and that many."
            )
        generator, found = random.Random(seed), dict[str, int]()
        while len(found) < n:
            wanted = 1 - len(found) % 2
            string = _valid(generator)
            if len(string) > longest:
                continue
            if not wanted:
                at = generator.randrange(1, len(string) - 1)
                string = string[:at] + generator.choice(SYMBOLS) + string[at + 1 :]
            if accepts(string) == bool(wanted):
                found.setdefault(string, wanted)
        strings = list(found)
        generator.shuffle(strings)
        return cls.of(strings, longest)

    @classmethod
    def of(cls, strings: list[str], longest: int) -> Reber:
        """Given strings.

        Raises:
            BudgetError: one is empty, longer than `longest` or has other symbols.
        """
        wrong = [s for s in strings if not 0 < len(s) <= longest or set(s) - set(SYMBOLS)]
        if wrong:
            raise BudgetError(f"Strings have 1 to {longest} symbols out of {SYMBOLS}, got {wrong[0]!r}.")
        places = [[SYMBOLS.index(c) for c in s] + [-1] * (longest - len(s)) for s in strings]
        valid = [int(accepts(s)) for s in strings]
        return cls(torch.tensor(places), torch.tensor([len(s) for s in strings]), torch.tensor(valid))

    def one_hot(self) -> Float[Tensor, "n longest 7"]:
        """A unit vector a symbol; zeros behind the end."""
        return (self.symbols.unsqueeze(-1) == torch.arange(len(SYMBOLS))).float()

    def following(self) -> Int[Tensor, "n longest"]:
        """The symbol after each; -1 after the last and behind it."""
        return torch.cat([self.symbols[:, 1:], torch.full_like(self.symbols[:, :1], -1)], dim=1)

    def allowed(self) -> Bool[Tensor, "n longest 7"]:
        """Symbols with which the grammar goes on after each; none after what it does not accept, or after the end."""
        may = torch.zeros(*self.symbols.shape, len(SYMBOLS), dtype=torch.bool)
        for i, string in enumerate(self.strings()):
            state = 0
            for step, symbol in enumerate(string):
                if symbol not in NEXT[state]:
                    break
                state = NEXT[state][symbol]
                may[i, step, [SYMBOLS.index(c) for c in NEXT[state]]] = True
        return may

    def strings(self) -> list[str]:
        """As text."""
        return ["".join(SYMBOLS[i] for i in row if i >= 0) for row in self.symbols.tolist()]

    def __getitem__(self, at: slice | Tensor) -> Reber:
        return Reber(self.symbols[at], self.lengths[at], self.valid[at])

    def __len__(self) -> int:
        return len(self.lengths)


def told(scores: Float[Tensor, "... n longest 7"], allowed: Bool[Tensor, "n longest 7"]) -> Float[Tensor, "..."]:
    """Share of steps at which all symbols that may follow have higher scores than all others; steps after which none may do not count."""
    least = scores.masked_fill(~allowed, torch.inf).amin(-1)
    most = scores.masked_fill(allowed, -torch.inf).amax(-1)
    return (least > most)[..., allowed.any(-1)].float().mean(-1)


def _valid(generator: random.Random) -> str:
    state, string = 0, ""
    while NEXT[state]:
        symbol = generator.choice(sorted(NEXT[state]))
        string, state = string + symbol, NEXT[state][symbol]
    return string


def _accepted(longest: int) -> int:
    """How many strings of at most so many symbols the grammar has: paths of the automaton into its last state."""
    ways, total = [1, *[0] * (len(NEXT) - 1)], 0
    for _ in range(longest):
        after = [0] * len(NEXT)
        for state, count in enumerate(ways):
            for reached in NEXT[state].values():
                after[reached] += count
        ways = after
        total += ways[-1]
    return total
