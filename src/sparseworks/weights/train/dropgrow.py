"""Drop-and-grow: dynamic sparse training on a fixed number of weights (SET, RigL and their kin)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparseworks.core.regime import REGIMES, Counts, Regime, Training
from sparseworks.core.schedule import Cadence, Schedule
from sparseworks.core.score import Score
from sparseworks.core.stats import Stat
from sparseworks.scores import Gradient, Random
from sparseworks.scores.training import Visits, visit


@REGIMES.register("drop_grow")
@dataclass(frozen=True)
class DropGrow(Regime):
    """Every `every` steps of the first `stop`: drop the share schedule(t / stop) of each group by the method's score, grow as many by `grow`.

    Entries just dropped may grow again and then keep their value; others start at zero, without optimiser state. The
    gradients of `grow` are those of the last step before the change, at every entry. The step itself is taken (the authors'
    code of RigL leaves it out where the support changes).

    Source: Mocanu et al., 2018, arXiv 1707.04780 (SET); Evci et al., 2020, arXiv 1911.11134 (RigL).

    Attributes:
        grow: score of the entries that may come.
        first: score of the first support, before anything is trained.
        every: steps between two changes.
        stop: share of the run after which the support stays.
        ramp: share of the final sparsity at t / stop; None = all of it from the start.
        rescale: scale first weights by sqrt(inputs / kept inputs) of their output, as if they were drawn for the inputs kept
            (Evci et al., 2022, arXiv 2010.03533).
    """

    grow: Score = field(default_factory=Gradient)
    first: Score = field(default_factory=Random)
    every: int = 100
    stop: float = 0.75
    ramp: Schedule | None = None
    rescale: bool = False
    timed = True
    gives = frozenset({Visits})

    @property
    def needs(self) -> frozenset[type[Stat]]:  # type: ignore[override]
        """Those of `grow`."""
        return self.grow.needs

    @property
    def starts_sparse(self) -> bool:
        """A ramp begins dense."""
        return self.ramp is None

    def begin(self, run: Training) -> None:
        """A sparse start."""
        self._keep(run, run.choose(run.scores(self.first), self._counts(run)))
        if self.rescale:
            for s in run.sites:
                kept = s.mask.sum(dim=1, keepdim=True).clamp(min=1)
                s.put(s.weight() * (s.shape[1] / kept).sqrt().to(s.weight().dtype))

    def due(self, run: Training) -> bool:
        """At the cadence, until `stop`."""
        return Cadence(self.every)(run.done + 1) and run.progress < self.stop

    def change(self, run: Training) -> None:
        """Drop, then grow back to the counts."""
        counts = self._counts(run)
        stay = run.choose(among_kept(run, run.scores(known=self._known(run))), less(counts, self._share(run)))
        grow = run.scores(self.grow, self._known(run))
        wanted = {s.name: grow[s.name].masked_fill(stay[s.name], torch.inf) for s in run.sites}
        self._keep(run, run.choose(wanted, counts))

    def end(self, run: Training) -> None:
        """The final sparsity, whatever the cadence left of the ramp."""
        if self.ramp is not None:
            run.keep(run.choose(among_kept(run, run.scores()), run.counts()))

    def _counts(self, run: Training) -> Counts:
        return run.counts(1.0 if self.ramp is None else self.ramp(run.progress / self.stop))

    def _share(self, run: Training) -> float:
        return run.method.schedule(run.progress / self.stop)

    def _keep(self, run: Training, masks: Mapping[str, Any]) -> None:
        run.keep(masks)
        if Visits in self.grow.needs | run.method.score.needs:
            for s in run.sites:
                visit(s.state, s.mask)

    def _known(self, run: Training) -> Mapping[str, Sequence[Stat]]:
        return {s.name: [Visits.of(s.state)] for s in run.sites if "visits" in s.state}


def among_kept(run: Training, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scores of kept entries; others come last."""
    return {s.name: scores[s.name].masked_fill(~s.mask, -torch.inf) for s in run.sites}


def less(counts: Counts, share: float) -> Counts:
    """Counts after the share `share` of every group, rounded down as in RigL, is dropped."""
    return {name: kept - (kept.double() * share + 1e-9).floor().long() for name, kept in counts.items()}
