"""Which block leaves out how many windows: evolutionary search under a limit of time, with one model that was trained at random ratios."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from sparseworks.activations.spatial.windows import nested
from sparseworks.allocate.evolve import Choice, evolve
from sparseworks.core.errors import BudgetError

Cost = Callable[[tuple[float, ...]], float]
Loss = Callable[[tuple[float, ...], int, int], float]
"""`loss(sparsities, examples, draw)`: lower is better."""


def search_sparsities(
    blocks: int,
    loss: Loss,
    cost: Cost,
    limit: float,
    *,
    levels: Sequence[float] = tuple(i / 10 for i in range(8)),
    generations: int = 10,
    offspring: int = 16,
    examples: int = 512,
    seed: int = 0,
) -> tuple[float, ...]:
    """Nested sparsities of least loss whose cost is within `limit`, from the uniform ones that fit.

    Each block's level mutates by one with probability 1 / blocks, at least one does; a child above the limit is sent on at its
    costliest block until it fits. Departure from SparseViT (Chen et al., 2023, arXiv 2303.17605; population 100, mutation 0.1 and
    crossover): (1 + offspring) selection without crossover, as all searches here.

    Args:
        cost: milliseconds, or FLOPs, of the sparsities; falls as they grow.

    Raises:
        BudgetError: not even the highest level everywhere is within the limit.
    """
    top = len(levels) - 1
    shares = lambda c: nested([levels[i] for i in c])  # noqa: E731
    uniform = [(i,) * blocks for i in range(top + 1) if cost(shares((i,) * blocks)) <= limit]
    if not uniform:
        raise BudgetError(
            f"Even {levels[-1]:.0%} of the windows left out everywhere costs {cost(shares((top,) * blocks)):.4g}, above {limit:.4g}."
        )

    def mutate(parent: Choice, draw: random.Random) -> Choice:
        child = list(parent)
        moved = [i for i in range(blocks) if draw.random() < 1 / blocks] or [draw.randrange(blocks)]
        for i in moved:
            child[i] = min(max(child[i] + draw.choice((-2, -1, 1, 2)), 0), top)
        child.sort()
        while cost(shares(child)) > limit:
            able = [i for i in range(blocks) if child[i] < top]
            child[draw.choice(able)] += 1
            child.sort()
        return tuple(child)

    found = evolve(
        uniform[0], mutate, lambda c, n, draw: loss(shares(c), n, draw),
        generations=generations, offspring=offspring, stages=((1, examples),), seed=seed,
    )  # fmt: skip
    return shares(found.best)
