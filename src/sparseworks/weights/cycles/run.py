"""Train - prune - go on, as often as the method's schedule says. Resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sparseworks.core.cycle import Cycle
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.schedule import Rounds, Survivors
from sparseworks.core.site import Site
from sparseworks.core.support import Support
from sparseworks.stream import blocks
from sparseworks.stream import sites as find_sites
from sparseworks.stream.gradients import Loss
from sparseworks.weights.checkpoint import Workdir, fingerprint
from sparseworks.weights.cycles.activate import activated
from sparseworks.weights.cycles.average import average, greedy_average, recalibrate
from sparseworks.weights.cycles.checks import checked
from sparseworks.weights.cycles.rounds import Cycled, Each, Lap, Round, Train
from sparseworks.weights.cycles.watch import Track, copied, watching
from sparseworks.weights.decide import Job, shrunk
from sparseworks.weights.enforce import dropped_masks, impose
from sparseworks.weights.prune import reseeded
from sparseworks.weights.show import Shown, Tick


def cycles(
    model: nn.Module,
    method: Method | str,
    train: Train,
    *,
    steps: int | None = None,
    sites: Sequence[Site] | None = None,
    skip: Sequence[str] = (),
    start: Mapping[str, Support] | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    each: Each | None = None,
    workdir: Path | str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Cycled:
    """Train `model`, prune what is left of it, go on from where the method says, and so forth down to the method's density.

    def train(model, lap):                       # knows nothing of sparsity
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in shuffled(data, lap.seed): ...
    found = sw.cycles(model, sw.method("imp", density=0.05), train, steps=1000)

    The supports are held by hooks on the optimiser's steps, whatever optimiser `train` makes. A support only shrinks.

    Args:
        method: a method with a `cycle`; any score and pattern whose count the budget sets.
        train: see `Train`.
        steps: optimiser steps of one training; needed where the cycle rewinds to a share of it or averages its tail.
        start: supports before the first training (random ones, say); default: dense.
        data, loss: for scores that need them, and for batch normalisation after averaging, see `sparseworks.prune`.
        evaluate: quality of a model, higher is better: told in `Round.quality`, and decides in a greedy average.
        each: called after every round with what it ended with, the model and its supports.
        workdir: folder where every round is kept; the same call goes on after the last finished one.
        seed: of every random part.

    Raises:
        ModelError: the method has no cycle, there is nothing to prune, or `train` took no optimiser step.
        BudgetError: the pattern fixes the density, the budget is above that of `start`, or `steps` is missing.
        CalibrationError: an average needs `data` (batch normalisation) or `evaluate` (greedy).
        CheckpointError: `workdir` belongs to another run.
    """
    chosen: Method = reseeded(Method.of(method), seed)
    listed = [s for s in (find_sites(model) if sites is None else sites) if not any(fnmatch(s.name, t) for t in skip)]
    batches = list(data) if data is not None else []
    cycle = checked(chosen, model, listed, steps, batches, evaluate)
    run = _Run(model, chosen, cycle, train, listed, steps, batches, loss, evaluate, each, seed)
    plan = run.plan(start)
    text = repr((chosen.to_config(), steps, sorted((n, s.hash()) for n, s in (start or {}).items())))
    work = Workdir.open(workdir, fingerprint(model, text, seed, batches, listed)) if workdir else None
    with Shown(progress).bar(chosen.name, len(plan) * cycle.copies) as tick:
        return run.go(plan, work, tick)


@dataclass
class _Run:
    model: nn.Module
    method: Method
    cycle: Cycle
    train: Train
    sites: Sequence[Site]
    steps: int | None
    batches: list[Any]
    loss: Loss | None
    evaluate: Callable[[nn.Module], float] | None
    each: Each | None
    seed: int

    def __post_init__(self):
        self.job = Job(
            self.model, [(self.method, list(self.sites))], blocks(self.model, self.sites), self.batches, self.loss
        )
        self.masks: dict[str, Bool[Tensor, "rows cols"]] = {}
        self.rewound: dict[str, Tensor] | None = None
        self.began: dict[str, Tensor] = {}

    def plan(self, start: Mapping[str, Support] | None) -> list[int]:
        """Entries kept in every round."""
        device = {s.name: s.tensor(self.model).device for s in self.sites}
        given = start or {}
        self.masks = {
            s.name: (given[s.name].mask() if s.name in given else torch.ones(s.shape, dtype=torch.bool)).to(
                device[s.name]
            )
            for s in self.sites
        }
        first = sum(int(m.sum()) for m in self.masks.values())
        total = self.method.budget.total({s.name: s.size for s in self.sites})
        if total > first:
            raise BudgetError(f"`start` keeps {first} entries, fewer than the {total} of the method's budget.")
        if total == first:
            return [first]
        schedule = self.method.schedule
        shares = schedule.shares(total / first) if isinstance(schedule, Survivors | Rounds) else [total / first]
        return [first, *(round(first * s) for s in shares[:-1]), total]

    def go(self, plan: Sequence[int], work: Workdir | None, tick: Tick) -> Cycled:
        """All rounds, after those that are done already."""
        done: list[Round] = []
        for number, kept in enumerate(plan):
            saved = self._restored(work, number)
            if saved:
                done.append(saved)
                tick(self.cycle.copies, "")
                continue
            if number:
                self._prune(kept)
            done.append(self._round(number, tick))
            if work:
                self._keep(work, number, done[-1])
            if self.each:
                self.each(done[-1], self.model, self._supports())
        return Cycled(self._supports(), tuple(done))

    def _supports(self) -> dict[str, Support]:
        return {name: Support.from_mask(mask) for name, mask in self.masks.items()}

    # -- one round ------------------------------------------------------------------------------------------------

    def _prune(self, kept: int) -> None:
        before = sum(int(m.sum()) for m in self.masks.values())
        still = round(self.cycle.activate * (before - kept))
        found = shrunk(self.job, self.method, self.sites, self.masks, kept + still)
        if still:
            weights = {s.name: s.read(self.model) for s in self.sites}
            began = {s.name: s.view(self.began[s.parameter]) for s in self.sites}
            found = activated(weights, began, found, kept)
        self.masks = found
        if self.rewound is not None:
            self.model.load_state_dict(self.rewound)

    def _round(self, number: int, tick: Tick) -> Round:
        size, started = sum(s.size for s in self.sites), time.monotonic()
        supports = self._supports()
        dropped = dropped_masks(self.model, self.sites, supports)
        density = sum(s.count for s in supports.values()) / size
        impose(self.model, dropped)
        start, states, steps = copied(self.model), [], 0
        copies = self.cycle.copies if number or self.cycle.rewind is not None else 1
        for copy in range(copies):
            self.model.load_state_dict(self.rewound if not number and copy and self.rewound else start)
            steps += self._train(Lap(number, copy, density, self._lap_seed(number, copy)), dropped)
            states.append(copied(self.model))
            tick(1 if copies > 1 else self.cycle.copies, f"{density:.1%} kept")
        self.began = start
        alone = self._averaged(states)
        impose(self.model, dropped)
        quality = self.evaluate(self.model) if self.evaluate else None
        return Round(density, quality, alone, steps, time.monotonic() - started)

    def _train(self, lap: Lap, dropped: Mapping[str, Tensor]) -> int:
        at = None
        if lap.round == 0 and lap.copy == 0 and self.cycle.rewind is not None:
            at = round(self.cycle.rewind * (self.steps or 0))
        track = Track(self.model, self.steps, at, self.cycle.tail)
        with torch.random.fork_rng(devices=[]), watching(self.model, dropped, track):
            torch.manual_seed(lap.seed)
            self.train(self.model, lap)
        if not track.done:
            raise ModelError("`train` took no step of an optimiser that holds parameters of the model.")
        if at is not None:
            self.rewound = track.snapshot
            if track.snapshot is None:
                raise BudgetError(f"The first training took {track.done} steps, too few to rewind to step {at}.")
        if track.mean:
            self.model.load_state_dict({**copied(self.model), **track.mean})
            self._settle(self.model)
        return track.done

    def _averaged(self, states: Sequence[Mapping[str, Tensor]]) -> tuple[float, ...]:
        """Leave the average in the model; the quality of every copy alone."""
        if len(states) == 1:
            return ()
        alone = []
        for state in states if self.evaluate else ():
            self.model.load_state_dict(state)
            alone.append(self.evaluate(self.model))  # type: ignore[misc]
        if self.cycle.greedy:
            assert self.evaluate is not None
            greedy_average(self.model, states, self.evaluate, self._settle)
        else:
            self.model.load_state_dict(average(states))
            self._settle(self.model)
        return tuple(alone)

    def _settle(self, model: nn.Module) -> None:
        recalibrate(model, self.batches, self.loss)

    def _lap_seed(self, number: int, copy: int) -> int:
        return (self.seed * 1009 + number) * 101 + copy

    # -- on disk --------------------------------------------------------------------------------------------------

    def _keep(self, work: Workdir, number: int, done: Round) -> None:
        tensors = {f"model.{k}": v.cpu().contiguous().clone() for k, v in self.model.state_dict().items()}
        tensors |= {f"began.{k}": v.cpu().contiguous().clone() for k, v in self.began.items()}
        tensors |= {f"bits.{name}": Support.from_mask(mask).bits() for name, mask in self.masks.items()}
        if number == 0 and self.rewound is not None:
            tensors |= {f"rewound.{k}": v.cpu().contiguous().clone() for k, v in self.rewound.items()}
        work.save(f"round_{number:03d}", tensors, asdict(done))

    def _restored(self, work: Workdir | None, number: int) -> Round | None:
        found = work.load(f"round_{number:03d}") if work else None
        if found is None:
            return None
        tensors, facts = found
        part = lambda prefix: {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}  # noqa: E731
        self.model.load_state_dict(part("model."))
        device = {s.name: s.tensor(self.model).device for s in self.sites}
        self.began = {k: v.to(next(iter(device.values()))) for k, v in part("began.").items()}
        self.rewound = part("rewound.") or self.rewound
        self.masks = {
            s.name: Support.from_bits(tensors[f"bits.{s.name}"], s.shape).mask().to(device[s.name]) for s in self.sites
        }
        return Round(**{**facts, "copies": tuple(facts["copies"])})
