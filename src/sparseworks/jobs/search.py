"""Search: the sparse model that meets a goal for speed and quality on this machine, by a latency-aware knapsack over measured times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sparseworks.allocate.knapsack import cheapest
from sparseworks.core.errors import BudgetError, CalibrationError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.recipe import Recipe, Rule
from sparseworks.evaluate import Task
from sparseworks.exec import measure, plan
from sparseworks.exec.fusion import whole_layers
from sparseworks.exec.row import rows_text
from sparseworks.jobs.goal import Goal, UnreachableError
from sparseworks.jobs.items import Item, items
from sparseworks.jobs.journal import Journal
from sparseworks.jobs.levels import Level, level_table, total_us
from sparseworks.jobs.result import drop, twin
from sparseworks.jobs.timing import forward, rows_of, time_case
from sparseworks.stream import sites as find_sites
from sparseworks.weights import prune

_WORTHWHILE = 1.02  # a speed-up below this is noise
_STEPS, _STATES = 100_000, 5_000  # resolution of the knapsack, and points of its front kept at a time


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
        return f"mostly {max(dict.fromkeys(kinds), key=kinds.count)}, aimed at {self.target:.2f}x"


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
    value_dtypes: Sequence[torch.dtype] = (torch.float32,),
    skip: Sequence[str] = (),
    refine: Callable[[nn.Module, Mapping[str, Any]], None] | None = None,
    trials: int = 6,
    seed: int = 0,
    workdir: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Found:
    """Choose a level of sparsity for every site so that the model meets the goal with the least error, and measure it.

    Times of all sites at all levels are measured and their errors calibrated once. For a target speed-up a knapsack picks
    one level per site with the least summed error; the variant is built, its measured speed corrects the next budget, its
    real quality decides. A speed-up out of reach gives the fastest variant there is.

    Args:
        method: score, solver and repair of every level.
        examples: case name -> batch; the first is the headline case the goal speaks of.
        refine: `refine(student, supports)`, a short recovery of every trial, where recovery is part of the job.
        trials: variants to build at most.
        workdir: folder for what was measured; the same call after an interruption goes on from there, and chooses the same.

    Raises:
        CalibrationError: no data.
        UnreachableError: no level of any site runs faster than dense.
        ModelError: the model has no site to prune, or all are skipped.
        CheckpointError: `workdir` holds a search with other settings.
    """
    batches, say = list(data), say or (lambda _: None)
    if not batches:
        raise CalibrationError("A search needs calibration data, and there are no batches.")
    sites = [s for s in find_sites(model) if Recipe.of(method, skip=skip).method_for(s.name)]
    if not sites:
        raise ModelError("Nothing to search over: the model has no sites, or all of them are skipped.")
    headline = next(iter(examples.values()))
    run = repr((method, goal, rows_of(headline), list(value_dtypes), [s.name for s in sites], seed, refine is not None))
    journal = Journal(workdir / "search.json" if workdir else None, run)
    say(
        f"pruning {len(sites)} sites at {len(goal.patterns)} patterns x {len(goal.densities)} densities, timing each shape"
    )

    def measure_levels() -> dict[str, list[Level]]:
        return level_table(
            model, sites, method, batches, example=headline, patterns=goal.patterns, densities=goal.densities,
            dtypes=value_dtypes, tick=_spoken(say, len(sites)),
        )  # fmt: skip

    builder = _Builder(
        model=model,
        table=journal.keep("levels", measure_levels, _table_to_data, _table_from_data),
        whole_us=journal.keep("whole", lambda: measure.time_call(lambda: forward(model, headline)).us),
        evaluate=evaluate,
        dense_quality=journal.keep("quality", lambda: evaluate(model).value),
        headline=headline,
        batches=batches,
        dtypes=value_dtypes,
        refine=refine,
        seed=seed,
        say=say,
        journal=journal,
        layers={
            layer: [f"{layer}.{m}" if layer else m for m in matrices] for layer, matrices in whole_layers(model).items()
        },
    )
    if builder.fastest < _WORTHWHILE:
        raise UnreachableError(
            f"No site runs faster sparse than dense here at {rows_text(rows_of(headline))}, by up to {1 - min(goal.densities):.0%} sparsity "
            f"in the patterns {', '.join(goal.patterns)}: `sparseworks plan` says why, site by site."
        )
    done = _walk(builder, goal, trials)
    met = [t for t in done if goal.met(t.ratio, t.drop)]
    best = _best(met or done, goal)
    return Found(best, (*done, *_around(builder, done, best, trials)), bool(met))


def _spoken(say: Callable[[str], None], total: int, seconds: float = 10.0) -> Callable[[int, str], None]:
    """Progress as a line of text every so often: the thread of a progress bar would disturb what is timed meanwhile."""
    done, last = 0, time.monotonic()

    def tick(steps: int, note: str) -> None:
        nonlocal done, last
        done += steps
        if time.monotonic() - last > seconds:
            last = time.monotonic()
            say(f"  {done} of {total} sites, last {note}")

    return tick


def _table_to_data(table: Mapping[str, Sequence[Level]]) -> dict[str, Any]:
    return {name: [level.to_data() for level in levels] for name, levels in table.items()}


def _table_from_data(data: Mapping[str, Any]) -> dict[str, list[Level]]:
    return {name: [Level.from_data(level) for level in levels] for name, levels in data.items()}


def _walk(builder: _Builder, goal: Goal, trials: int) -> list[Trial]:
    """With a speed-up: correct the aim until the measured speed holds it. Without: bisect on the speed-up by quality."""
    done: list[Trial] = []
    if goal.speedup is not None:
        aim = max(goal.speedup, _WORTHWHILE)
        while len(done) < min(trials, 4):
            done.append(builder.build(min(aim, builder.fastest)))
            if done[-1].ratio >= goal.speedup or done[-1].target >= builder.fastest:
                break
            aim *= 1.02 * goal.speedup / done[-1].ratio
        return done
    low, high = 1.0, builder.fastest
    while len(done) < trials and (high / low > 1.05 or not done):
        aim = (low * high) ** 0.5
        done.append(builder.build(aim))
        low, high = (aim, high) if goal.met(done[-1].ratio, done[-1].drop) else (low, aim)
    return done


def _around(builder: _Builder, done: Sequence[Trial], best: Trial, trials: int) -> list[Trial]:
    """With trials left, a slower and a faster variant, so that the frontier shows what more or less speed would cost."""
    known, found = [t.target for t in done], []
    for aim in (best.target**0.5, min(1.3 * best.target, builder.fastest)):
        if len(done) + len(found) < trials and all(abs(aim / t - 1) > 0.05 for t in known):
            found.append(builder.build(aim))
            known.append(aim)
    return found


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
    journal: Journal
    layers: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def rest_us(self) -> float:
        """Time of the model outside the sites; the sum of lone layers may exceed the whole on a noisy machine."""
        return max(self.whole_us - total_us(self.table), 0.05 * self.whole_us)

    @property
    def fastest(self) -> float:
        """Speed-up if every site took its fastest level."""
        return self.whole_us / (self.rest_us + self._least_us)

    @property
    def _items(self) -> list[Item]:
        return items(self.table, self.layers, self.rest_us / max(len(self.layers), 1))

    @property
    def _least_us(self) -> float:
        return sum(min(option.us for option in item.options) for item in self._items)

    def build(self, target: float) -> Trial:
        """Choose levels for the target, prune, plan, and measure speed and quality."""
        picks = self._choose(self.whole_us / target - self.rest_us)
        chosen = {name: self.table[name][i] for name, i in picks.items()}
        recipe = Recipe(tuple(Rule((escape(name),), level.method) for name, level in chosen.items()))
        ratio, quality = self.journal.keep(f"trial {target:.9g}", lambda: self._measure(recipe))
        loss = drop(self.dense_quality, quality, self.evaluate.higher_is_better)
        trial = Trial(target, ratio, quality, loss, recipe, chosen)
        self.say(f"{trial.label}: measured {ratio:.2f}x, {self.evaluate.metric} {quality:.4g} (loss {loss:.2%})")
        return trial

    def _measure(self, recipe: Recipe) -> tuple[float, float]:
        """(speed-up, quality); a recipe that leaves everything dense is the dense model."""
        if not any(rule.method for rule in recipe.rules):
            return 1.0, self.dense_quality
        student = twin(self.model)
        pruned = prune(student, recipe, self.batches, seed=self.seed, progress=False)
        if self.refine is not None:
            self.refine(student, pruned.supports)
        fast = plan(student, pruned.supports, examples=[self.headline], dtypes=tuple(self.dtypes)).apply(student)
        return time_case("", self.model, fast, self.headline)["ratio"], self.evaluate(fast).value

    def _choose(self, budget_us: float) -> dict[str, int]:
        listed = self._items
        picks = knapsack(
            [[option.us for option in item.options] for item in listed],
            [[option.error for option in item.options] for item in listed],
            max(budget_us, self._least_us),
        )
        chosen: dict[str, int] = {}
        for item, pick in zip(listed, picks, strict=True):
            chosen |= dict(zip(item.sites, item.options[pick].levels, strict=True))
        return {name: chosen[name] for name in self.table}


def knapsack(costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]], budget: float) -> list[int]:
    """One option per item, least summed loss with summed cost <= budget (multiple-choice knapsack by dynamic programming).

    Costs are rounded to a 100,000th of the budget, so the sum may miss the budget by as much per item.

    Raises:
        BudgetError: even the cheapest options exceed the budget.
    """
    cheapest_sum = sum(min(c) for c in costs)
    if cheapest_sum > budget:
        raise BudgetError(f"The cheapest choice costs {cheapest_sum:.4g}, above the budget of {budget:.4g}.")
    step = max(budget, 1e-12) / _STEPS
    whole = [np.array([round(c / step) for c in item]) for item in costs]
    least = sum(int(c.min()) for c in whole)
    return cheapest(whole, [np.array(item, dtype=float) for item in losses], max(_STEPS, least), states=_STATES)
