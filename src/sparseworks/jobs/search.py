"""Search: the sparse model that meets a goal for speed and quality on this machine, by a latency-aware knapsack over measured times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from math import ceil
from typing import Any

import torch
from torch import nn

from sparseworks.core.errors import BudgetError, CalibrationError
from sparseworks.core.method import Method
from sparseworks.core.recipe import Recipe, Rule
from sparseworks.evaluate import Task
from sparseworks.exec import measure, plan
from sparseworks.jobs.levels import Level, level_table, total_us
from sparseworks.jobs.result import drop, twin
from sparseworks.jobs.timing import forward, rows_of, time_case
from sparseworks.stream import sites as find_sites
from sparseworks.weights import prune

PATTERNS = ("row", "block:4x1", "block:16x1")
DENSITIES = (0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1)
_STEPS = 20_000  # resolution of the knapsack: rounding hundreds of sites up to it costs under 1 % of the budget


@dataclass(frozen=True)
class Goal:
    """What the sparse model must reach.

    Attributes:
        speedup: times faster than the dense model on the headline case, or None.
        max_drop: largest relative loss of quality, or None.
    """

    speedup: float | None = None
    max_drop: float | None = None

    def __post_init__(self):
        if self.speedup is None and self.max_drop is None:
            raise BudgetError("A goal needs a speed-up, a largest drop, or both.")
        if self.speedup is not None and self.speedup < 1:
            raise BudgetError(f"A speed-up is at least 1, got {self.speedup}.")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise BudgetError(f"A largest drop lies in [0, 1), got {self.max_drop}.")

    def met(self, ratio: float, loss: float) -> bool:
        """Whether a measured speed-up and loss of quality satisfy the goal."""
        fast = self.speedup is None or ratio >= self.speedup
        return fast and (self.max_drop is None or loss <= self.max_drop)


@dataclass(frozen=True)
class Trial:
    """One variant that was built and measured.

    Attributes:
        target: speed-up the knapsack aimed at.
        ratio: measured speed-up.
        quality: measured quality, after pruning (and after a short recovery, where one was given).
        drop: relative loss of quality against dense.
    """

    target: float
    ratio: float
    quality: float
    drop: float
    recipe: Recipe = field(repr=False)
    chosen: Mapping[str, Level] = field(repr=False)

    @property
    def label(self) -> str:
        """What most sites got."""
        kinds = [level.label for level in self.chosen.values()]
        return f"{self.target:.2f}x: mostly {max(set(kinds), key=kinds.count)}"


@dataclass(frozen=True)
class Found:
    """The outcome of a search: the best trial, all trials, and whether the goal was met before the final recovery."""

    best: Trial
    trials: tuple[Trial, ...]
    met: bool

    @property
    def frontier(self) -> list[dict[str, Any]]:
        """Trials that no other trial beats in both speed and quality, as plain data for the report."""
        kept = [t for t in self.trials if not any(o.ratio > t.ratio and o.drop < t.drop for o in self.trials)]
        return [{"label": t.label, "speed": t.ratio, "quality": t.quality} for t in sorted(kept, key=lambda t: t.ratio)]


def search(
    model: nn.Module,
    method: Method,
    goal: Goal,
    *,
    data: Iterable[Any],
    evaluate: Task,
    examples: Mapping[str, Any],
    patterns: Sequence[str] = PATTERNS,
    densities: Sequence[float] = DENSITIES,
    value_dtypes: Sequence[torch.dtype] = (torch.float32,),
    skip: Sequence[str] = (),
    refine: Callable[[nn.Module, Mapping[str, Any]], None] | None = None,
    trials: int = 6,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Found:
    """Choose a pattern and a density for every site so that the whole model meets `goal`.

    1. Every site is pruned at every level and timed with the kernel the planner chooses: a table of (time, error).
    2. A knapsack takes the levels of least summed relative error whose times fit the budget.
    3. The variant is built; its real speed corrects the next budget, its real quality decides.

    Args:
        method: score, solver and repair of every level.
        examples: case name -> batch; the first is the headline case the goal speaks of.
        refine: `refine(student, supports)`, a short recovery of every trial, where recovery is part of the job.
        trials: variants to build at most.

    Raises:
        CalibrationError: no data.
        BudgetError: even the sparsest level of every site misses the speed-up.
    """
    batches = list(data)
    if not batches:
        raise CalibrationError("A search needs calibration data, and there are no batches.")
    say = say or (lambda _: None)
    sites = [s for s in find_sites(model) if Recipe.of(method, skip=skip).method_for(s.name)]
    headline = next(iter(examples.values()))
    say(f"timing {len(sites)} sites at {len(patterns)} patterns and {len(densities)} densities ...")
    table = level_table(
        model,
        sites,
        method,
        batches,
        rows=rows_of(headline),
        patterns=patterns,
        densities=densities,
        dtypes=value_dtypes,
    )
    dense_quality = evaluate(model).value
    whole = measure.time_call(lambda: forward(model, headline)).us
    builder = _Builder(model, table, whole, evaluate, dense_quality, headline, batches, value_dtypes, refine, seed, say)
    done = _walk(builder, goal, trials)
    met = [t for t in done if goal.met(t.ratio, t.drop)]
    best = _best(met or done, goal)
    return Found(best, tuple(done), bool(met))


def _walk(builder: _Builder, goal: Goal, trials: int) -> list[Trial]:
    """With a speed-up: correct the aim until the measured speed holds it. Without: bisect on the speed-up by quality."""
    done: list[Trial] = []
    if goal.speedup is not None:
        aim = goal.speedup
        while len(done) < min(trials, 4):
            done.append(builder.build(min(aim, builder.fastest)))
            if done[-1].ratio >= goal.speedup or done[-1].target >= builder.fastest:
                break
            aim *= 1.02 * goal.speedup / done[-1].ratio
        return done
    low, high = 1.0, builder.fastest
    while len(done) < trials and high / low > 1.05:
        aim = (low * high) ** 0.5
        done.append(builder.build(aim))
        low, high = (aim, high) if goal.met(done[-1].ratio, done[-1].drop) else (low, aim)
    return done


def _best(trials: Sequence[Trial], goal: Goal) -> Trial:
    """With a speed-up the best quality among the fast enough (or the fastest); without, the fastest (or the best quality)."""
    if goal.speedup is not None:
        fast = [t for t in trials if t.ratio >= goal.speedup]
        return min(fast, key=lambda t: t.drop) if fast else max(trials, key=lambda t: t.ratio)
    good = [t for t in trials if goal.met(t.ratio, t.drop)]
    return max(good, key=lambda t: t.ratio) if good else min(trials, key=lambda t: t.drop)


@dataclass
class _Builder:
    """Builds and measures variants; everything but the target is fixed."""

    model: nn.Module
    table: Mapping[str, Sequence[Level]]
    whole_us: float
    evaluate: Task
    dense_quality: float
    headline: Any
    batches: Sequence[Any]
    dtypes: Sequence[torch.dtype]
    refine: Callable[[nn.Module, Mapping[str, Any]], None] | None
    seed: int
    say: Callable[[str], None]

    @property
    def rest_us(self) -> float:
        """Time of the model outside the sites; the sum of lone layers may exceed the whole on a noisy machine."""
        return max(self.whole_us - total_us(self.table), 0.05 * self.whole_us)

    @property
    def fastest(self) -> float:
        """Speed-up if every site took its fastest level."""
        return self.whole_us / (self.rest_us + sum(min(v.us for v in levels) for levels in self.table.values()))

    def build(self, target: float) -> Trial:
        """Choose levels for the target, prune, plan, and measure speed and quality."""
        chosen = self._choose(self.whole_us / target - self.rest_us)
        recipe = Recipe(tuple(Rule((escape(name),), level.method) for name, level in chosen.items()), self.seed)
        student = twin(self.model)
        pruned = prune(student, recipe, self.batches, seed=self.seed, progress=False)
        if self.refine is not None:
            self.refine(student, pruned.supports)
        fast = plan(student, pruned.supports, batch=rows_of(self.headline), dtypes=tuple(self.dtypes)).apply(student)
        ratio = time_case("", self.model, fast, self.headline)["ratio"]
        quality = self.evaluate(fast).value
        trial = Trial(
            target, ratio, quality, drop(self.dense_quality, quality, self.evaluate.higher_is_better), recipe, chosen
        )
        self.say(f"{trial.label}: measured {ratio:.2f}x, {self.evaluate.metric} {quality:.4g} (loss {trial.drop:.2%})")
        return trial

    def _choose(self, budget_us: float) -> dict[str, Level]:
        names = list(self.table)
        picks = knapsack(
            [[v.us for v in self.table[n]] for n in names], [[v.error for v in self.table[n]] for n in names], budget_us
        )
        return {n: self.table[n][i] for n, i in zip(names, picks, strict=True)}


def knapsack(costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]], budget: float) -> list[int]:
    """One option per item, least summed loss with summed cost <= budget (multiple-choice knapsack by dynamic programming).

    Costs are rounded up to a 20,000th of the budget, so the budget always holds.

    Raises:
        BudgetError: even the cheapest options exceed the budget.
    """
    cheapest = sum(min(c) for c in costs)
    if cheapest > budget:
        raise BudgetError(f"The cheapest choice costs {cheapest:.4g}, above the budget of {budget:.4g}.")
    steps = [[ceil(c * _STEPS / max(budget, 1e-12)) for c in item] for item in costs]
    if sum(min(s) for s in steps) > _STEPS:  # the rounding alone breaks the budget: nothing but the cheapest fits
        return [min(range(len(c)), key=c.__getitem__) for c in costs]
    best = torch.zeros(_STEPS + 1, dtype=torch.float64)  # least loss at a cost of at most so many steps
    back: list[torch.Tensor] = []
    for item_steps, item_losses in zip(steps, losses, strict=True):
        options = torch.full((len(item_steps), _STEPS + 1), torch.inf, dtype=torch.float64)
        for option, (step, loss) in enumerate(zip(item_steps, item_losses, strict=True)):
            if step <= _STEPS:
                options[option, step:] = best[: _STEPS + 1 - step] + loss
        best, choice = options.min(dim=0)
        back.append(choice)
    at, picks = _STEPS, []
    for item_steps, choice in zip(reversed(steps), reversed(back), strict=True):
        picks.append(int(choice[at]))
        at -= item_steps[picks[-1]]
    return picks[::-1]
