"""What a regime sees of a training run: sites and their scores, how many entries are kept, and how supports change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseworks.core.allocator import Evidence
from sparseworks.core.errors import ModelError
from sparseworks.core.method import Method
from sparseworks.core.regime import ACROSS, Counts, Regime, Trained, Training
from sparseworks.core.score import Score
from sparseworks.core.select import select_mask
from sparseworks.core.site import Site
from sparseworks.core.stats import Stat, Stats, WeightGradient
from sparseworks.stream.gradients import Loss
from sparseworks.stream.modes import evaluating
from sparseworks.weights.decide import Job, across, gather_evidence
from sparseworks.weights.prune import reseeded
from sparseworks.weights.train.frozen import Frozen
from sparseworks.weights.train.slot import Place, Slot, group_of, local_like
from sparseworks.weights.train.units import Units
from sparseworks.weights.train.watch import Watch


@dataclass(frozen=True)
class Event:
    """One change of the supports: after which step, entries kept, and how many left and came."""

    step: int
    kept: int
    dropped: int
    grown: int


class Run:
    """A training run as its regime sees it (`core.regime.Training`); `Sparsifier` is what users make.

    Attributes:
        done: optimiser steps that were followed by `Sparsifier.step()`.
        stage: stages that were begun by `Sparsifier.next_stage()`.
        history: every change of the supports.
        frozen: entries that keep their value.
    """

    model: nn.Module
    method: Method
    optimizer: Optimizer
    regime: Regime
    steps: int | None
    seed: int
    done: int
    stage: int
    history: list[Event]
    sites: list[Place]
    frozen: Frozen
    _since: int
    _stale: bool
    _slots: dict[str, Slot]
    _members: dict[str, list[Place]]
    _units: Units | None
    _undo: list[Callable[[], None]]
    _watch: Watch
    _final: Counts
    _measured: Mapping[str, Stats]

    @property
    def progress(self) -> float:
        """Share of the stage that is done, in [0, 1]; a run without stages is one."""
        return min(self.stage_done / self.steps, 1.0) if self.steps else 0.0

    @property
    def stage_done(self) -> int:
        """Optimiser steps finished in the stage."""
        return self.done - self._since

    @property
    def measured(self) -> bool:
        """Whether scores are those of data given for the purpose."""
        return bool(self._measured)

    @property
    def units(self) -> Units:
        """The coupled units, of a method that removes those.

        Raises:
            ModelError: the method does not.
        """
        if self._units is None:
            raise ModelError(f"Method {self.method.name!r} makes entries sparse, not coupled units.")
        return self._units

    @torch.no_grad()
    def keep_units(self, alive: Bool[Tensor, " groups"]) -> None:
        """Make these the units that live: all that belongs to the others becomes zero and stays so."""
        self.units.keep(alive)
        self.keep({p.name: p.mask & self.units.mask(p.site, p.parameter) for p in self.sites})

    def freeze(self, marks: Mapping[str, Bool[Tensor, "..."]]) -> None:
        """Let the marked entries keep the value they have now, bit for bit, to the end; outside the support they are hidden, not lost.

        Args:
            marks: of sites by their names, `(rows, cols)`, and of other parameters by theirs, in their own layout.

        Raises:
            ModelError: no site or parameter of that name, or a sharded parameter.
            ShapeError: a mark does not fit.
        """
        sites = {place.name: place for place in self.sites}
        for name, mark in marks.items():
            if name in sites:
                self.frozen.add_site(sites[name], mark)
            else:
                self.frozen.add(name, mark)

    def learn(self, site: Trained, name: str, start: Tensor) -> None:
        """Let the optimiser train `site.learned[name]` in the group of the site's parameter."""
        site.learned[name] = nn.Parameter(start.detach().clone())
        group_of(self.optimizer, site.parameter)["params"].append(site.learned[name])

    def at_end(self, undo: Callable[[], None]) -> None:
        """Call `undo` in `finish`."""
        self._undo.append(undo)

    def scores(
        self, score: Score | None = None, known: Mapping[str, Sequence[Stat]] | None = None
    ) -> dict[str, Float[Tensor, "rows cols"]]:
        """The scores of every site, by the method's own score or by another; random ones are drawn anew at every step."""
        chosen = reseeded(score or self.method.score, self.done)
        found = {}
        for place in self.sites:
            seen = self._measured.get(place.name) or self._watch.stats[place.name]
            stats = Stats([*(known or {}).get(place.name, ()), *seen], site=place.name)
            if WeightGradient in chosen.needs and WeightGradient not in stats:
                gradient = WeightGradient(*place.shape)
                gradient.update(place.gradient())
                stats = Stats([*stats, gradient], site=place.name)
            found[place.name] = chosen(place.weight(), stats).to(place.mask.device)
        return found

    def counts(self, share: float = 1.0) -> Counts:
        """What is kept when `share` of the final sparsity is reached."""
        pattern = self.method.pattern
        if pattern.fixed_density is not None:
            return {p.name: pattern.counts(p.shape, None) for p in self.sites}
        if pattern.across:
            size = sum(p.site.size for p in self.sites)
            return {ACROSS: size - ((size - self._final[ACROSS]).double() * share).round().long()}
        return {p.name: pattern.counts(p.shape, _left(p.site.size, self._final[p.name], share)) for p in self.sites}

    def choose(self, scores: Mapping[str, Tensor], counts: Counts) -> dict[str, Bool[Tensor, "rows cols"]]:
        """The best of every group, by the method's pattern."""
        if self.method.pattern.across:
            return across(self.method.pattern, scores, int(counts[ACROSS]))
        return {name: select_mask(s, self.method.pattern, counts[name]) for name, s in scores.items()}

    @torch.no_grad()
    def keep(self, masks: Mapping[str, Bool[Tensor, "rows cols"]]) -> None:
        """Make these the supports; what leaves becomes zero, and the optimiser's state of all that changes is cleared."""
        moved = {p.name: masks[p.name] ^ p.mask for p in self.sites}
        dropped, grown, kept = _movement(moved, {p.name: p.mask for p in self.sites}, masks)
        self._stale = True
        for place in self.sites:
            place.mask = masks[place.name]
        if not self.regime.dense:
            for slot, at in self._marks(moved):
                slot.clear(self.optimizer, at)
        if dropped or grown:
            self.history.append(Event(self.done, kept, dropped, grown))

    # -- how it is done ------------------------------------------------------------------------------------------

    def _on_data(self, act: Callable[[Training], None], data: Iterable[Any] | None, loss: Loss | None) -> None:
        """Let the regime act with the statistics of `data` in place of those of the last step."""
        if data is not None:
            listed, needs = [place.site for place in self.sites], self.method.score.needs | self.regime.needs
            job = Job(self.model, [(self.method, listed)], [], list(data), loss)
            measured = needs - self.regime.gives
            with evaluating(self.model):
                self._measured = gather_evidence(job, {site.name: measured for site in listed})
        try:
            act(self)
        finally:
            self._measured = {}

    def _marks(self, at: Mapping[str, Bool[Tensor, "rows cols"]]) -> list[tuple[Slot, Bool[Tensor, "..."]]]:
        """Marks of sites, laid out like the parameters (this rank's part)."""
        found = []
        for name, slot in self._slots.items():
            mark = torch.zeros(slot.parameter.shape, dtype=torch.bool, device=slot.dense.device)
            for place in self._members[name]:
                place.site.put(mark, at[place.name])
            found.append((slot, local_like(mark, slot.parameter)))
        return found

    def _counted(self, listed: Sequence[Site]) -> Counts:
        method, sizes = self.method, {s.name: s.size for s in listed}
        if method.pattern.fixed_density is not None:
            return {}
        if method.pattern.across:
            return {ACROSS: torch.tensor([method.budget.total(sizes)])}
        evidence = Evidence(
            weight=lambda name: next(p for p in self.sites if p.name == name).weight(), score=method.score
        )
        counts = method.allocate(listed, method.budget, evidence=evidence)
        return {name: torch.tensor([count]) for name, count in counts.items()}


def _movement(moved: Mapping[str, Tensor], old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> list[int]:
    """Entries that left, that came, and that are kept: counted where they lie, so that a GPU is waited for once."""
    each = [torch.stack([(m & old[n]).sum(), (m & new[n]).sum(), new[n].sum()]) for n, m in moved.items()]
    return torch.stack([c.to(each[0].device) for c in each]).sum(dim=0).tolist()


def _left(size: int, final: Tensor, share: float) -> int:
    return size - round((size - int(final)) * share)
