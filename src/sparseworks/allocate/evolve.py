"""(1 + lambda) evolutionary search with selection in several steps, and the allocator that searches levels with it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

from sparseworks.core.allocator import ALLOCATORS, Allocator, Evidence
from sparseworks.core.budget import even_split
from sparseworks.core.errors import BudgetError, MissingStatError
from sparseworks.core.site import Site

Choice = tuple[int, ...]
"""One level per unit."""

Mutate = Callable[[Choice, random.Random], Choice]
Fitness = Callable[[Choice, int, int], float]
"""`fitness(choice, tokens, draw)`: lower is better; `draw` seeds the choice of calibration tokens."""

Stages = tuple[tuple[int, int], ...]
"""(survivors, tokens) of each selection step; the last one leaves a single survivor."""


@dataclass(frozen=True)
class Evolved:
    """What a search found.

    Attributes:
        best: the levels.
        fitness: of the best, at the last selection.
        history: (fitness of the parent, of the survivor) on the same tokens, generation after generation.
    """

    best: Choice
    fitness: float
    history: tuple[tuple[float, float], ...]


def evolve(
    start: Choice,
    mutate: Mutate,
    fitness: Fitness,
    *,
    generations: int,
    offspring: int,
    stages: Stages,
    seed: int = 0,
) -> Evolved:
    """Mutate the parent `offspring` times, keep the best of each stage on fresh tokens, let the parent join the last.

    The parent is replaced only by what is better on the same tokens, so on fixed tokens the fitness never rises.

    Source: Sieberling, Kuznedelev, Kurtic and Alistarh, 2024, arXiv 2410.14649.

    Raises:
        BudgetError: no offspring, or stages that do not narrow down to one.
    """
    kept = [survivors for survivors, _ in stages]
    if offspring < 1 or not kept or kept[-1] != 1 or kept != sorted(kept, reverse=True):
        raise BudgetError(
            f"A search needs offspring and stages that narrow down to one survivor, got {offspring} and {stages}."
        )
    parent, history = start, []
    for generation in range(generations):
        draw = random.Random(f"{seed}|{generation}")
        children = list(dict.fromkeys(mutate(parent, draw) for _ in range(offspring)))
        children = [c for c in children if c != parent]
        if not children:
            continue
        for survivors, tokens in stages[:-1]:
            key = draw.randrange(1 << 30)
            children = sorted(children, key=lambda c: fitness(c, tokens, key))[:survivors]
        key = draw.randrange(1 << 30)
        scores = {c: fitness(c, stages[-1][1], key) for c in (parent, *children)}
        best = min(scores, key=scores.__getitem__)
        history.append((scores[parent], scores[best]))
        parent = best
    return Evolved(parent, history[-1][1] if history else float("nan"), tuple(history))


def exchange(pairs: Iterable[tuple[int, int]], lows: Sequence[int], highs: Sequence[int], flips: int = 3) -> Mutate:
    """min(U{1..flips}, U{1..flips}) times: in one random pair the first unit goes a level down, the second one up; the sum stays.

    Args:
        pairs: units that may exchange a level.
        lows, highs: the levels between which each unit stays.
        flips: most exchanges of one mutation.
    """
    listed = tuple(pairs)

    def mutate(parent: Choice, draw: random.Random) -> Choice:
        child = list(parent)
        for _ in range(min(draw.randint(1, flips), draw.randint(1, flips))):
            able = [(i, j) for i, j in listed if child[i] > lows[i] and child[j] < highs[j]]
            if not able:
                break
            i, j = draw.choice(able)
            child[i], child[j] = child[i] - 1, child[j] + 1
        return tuple(child)

    return mutate


def shift(lows: Sequence[int], highs: Sequence[int], flips: int = 3) -> Mutate:
    """`exchange` between any two units."""
    return exchange(permutations(range(len(lows)), 2), lows, highs, flips)


@ALLOCATORS.register("evopress")
@dataclass(frozen=True)
class EvoPress(Allocator):
    """argmin over levels v of KL(dense || model pruned to count_l = uniform_l - v_l * step), sum_l v_l = 0, by `evolve`.

    Levels -`reach` to +`reach` of all sites differ by the same number of weights, so every exchange keeps the budget. A
    site's weights at a level are those that the method gives on the inputs of the dense model, made once and kept.

    Attributes:
        generations, offspring, stages: see `evolve`.
        reach: highest level.
        step: weights between two levels; None = 1/29 of the mean site, which is 1e6 for LLaMA-7B.

    Source: Sieberling, Kuznedelev, Kurtic and Alistarh, 2024, arXiv 2410.14649 (400 generations of 64; 8, 2 and 1 survivors
    on 2,048, 16,384 and 65,536 tokens). Departure: pruning to the counts found solves every site once more, on inputs that
    come from the pruned blocks before it.
    """

    generations: int = 400
    offspring: int = 64
    stages: Stages = ((8, 2_048), (2, 16_384), (1, 65_536))
    reach: int = 8
    step: int | None = None
    seed: int = 0
    uses_trials: ClassVar[bool] = True

    @classmethod
    def example(cls) -> EvoPress:
        """A search of seconds."""
        return cls(generations=2, offspring=4, stages=((2, 1), (1, 2)))

    def shares(self, sites: Sequence[Site], total: int, evidence: Evidence) -> dict[str, int]:
        """The counts of the best choice of levels.

        Raises:
            MissingStatError: no trials can be made: no model or no data.
        """
        if evidence.trial is None:
            raise MissingStatError("The evopress allocator tries variants of the model: give calibration data.")
        trial, sizes, names = evidence.trial, [s.size for s in sites], [s.name for s in sites]
        base = even_split(total, sizes)
        step = self.step or max(1, round(sum(sizes) / len(sizes) / 29))
        lows = [-min(self.reach, (n - b) // step) for n, b in zip(sizes, base, strict=True)]
        highs = [min(self.reach, b // step) for b in base]

        def counts(choice: Choice) -> dict[str, int]:
            return {n: b - v * step for n, b, v in zip(names, base, choice, strict=True)}

        found = evolve(
            (0,) * len(sites), shift(lows, highs), lambda c, tokens, draw: trial(counts(c), tokens, draw),
            generations=self.generations, offspring=self.offspring, stages=self.stages, seed=self.seed,
        )  # fmt: skip
        return counts(found.best)
