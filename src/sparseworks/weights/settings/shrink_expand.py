"""Sparse continual learning: supports that widen when a task begins and are exchanged within it, and sparse gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from sparseworks.core.errors import BudgetError
from sparseworks.core.patterns import parse
from sparseworks.core.regime import REGIMES, Counts, Regime, Training
from sparseworks.core.schedule import Cadence
from sparseworks.core.score import Score
from sparseworks.core.select import select_mask
from sparseworks.core.stats import Stat
from sparseworks.scores import Magnitude, Random
from sparseworks.weights.train.dropgrow import among_kept

_ENTRIES = parse("tensor")


@REGIMES.register("shrink_expand")
@dataclass(frozen=True)
class ShrinkExpand(Regime):
    """Density p + extra when a stage begins; every `every` steps shrink to p - extra by the method's score and expand to p by `grow`;
    from the share `hold` of the stage on p is held.

    Only gradients of the `gradients` |g| largest of a site's kept entries (a density, below p) pass. Which they are is decided anew
    every `again` steps and with every change; in between the others need not be computed.

    Source: Wang, Zhan, Gong, Yuan, Niu, Jian, Ren, Ioannidis, Wang and Dy, 2022, arXiv 2209.09476 (SparCL: 5 of 50 epochs,
    extra 0.01, gradients 0.2 at p = 0.25; in the authors' code gradients are chosen every 30 steps, and supports by magnitude alone).

    Attributes:
        extra: density that comes and goes.
        gradients: density of the gradients; None = that of the weights.
        again: steps between two choices of the gradients that pass.
        first: score of the first support.
        grow: score of the entries that may come.
    """

    every: int = 100
    extra: float = 0.01
    hold: float = 0.9
    gradients: float | None = 0.2
    again: int = 30
    first: Score = field(default_factory=Magnitude)
    grow: Score = field(default_factory=Random)
    timed = True

    def __post_init__(self):
        share = 1.0 if self.gradients is None else self.gradients
        if min(self.every, self.again) < 1 or self.extra < 0 or not 0 < share <= 1:
            raise BudgetError(
                f"Shrinking and expanding takes every >= 1, again >= 1, extra >= 0 and gradients in (0, 1], got {self.every}, "
                f"{self.again}, {self.extra}, {self.gradients}."
            )

    @property
    def needs(self) -> frozenset[type[Stat]]:  # type: ignore[override]
        """Those of `grow`."""
        return self.grow.needs

    @property
    def starts_sparse(self) -> bool:
        """Always."""
        return True

    def begin(self, run: Training) -> None:
        """The best of the model as it is, widened."""
        run.keep(run.choose(run.scores(self.first), self._counts(run, self.extra)))

    def enter(self, run: Training) -> None:
        """Another task: room for it."""
        run.keep(self._grown(run, {s.name: s.mask for s in run.sites}, self._counts(run, self.extra), Random()))

    def due(self, run: Training) -> bool:
        """At the cadence."""
        return Cadence(self.every)(run.stage_done + 1)

    def before(self, run: Training) -> None:
        """Keep the gradients that pass."""
        if self.gradients is None:
            return
        for s in run.sites:
            gradient = s.gradient() * s.mask
            if run.stage_done % self.again == 0 or "passing" not in s.state:
                count = torch.tensor([min(round(self.gradients * s.site.size), int(s.mask.sum()))])
                s.state["passing"] = select_mask(gradient.abs(), _ENTRIES, count)
            s.set_gradient(torch.where(s.state["passing"], gradient, 0.0))

    def change(self, run: Training) -> None:
        """Shrink, and expand unless the support is held."""
        held = run.progress >= self.hold
        for s in run.sites:
            s.state.pop("passing", None)
        stay = run.choose(among_kept(run, run.scores()), self._counts(run, 0.0 if held else -self.extra))
        run.keep(stay if held else self._grown(run, stay, run.counts(), self.grow))

    def end(self, run: Training) -> None:
        """The budget."""
        run.keep(run.choose(among_kept(run, run.scores(Magnitude())), run.counts()))

    def _counts(self, run: Training, more: float) -> Counts:
        sizes = {s.name: s.site.size for s in run.sites}
        final = run.method.budget.total(sizes) / sum(sizes.values())
        if final + more > 1.0 or final + more < 0.0:
            raise BudgetError(
                f"A density of {final:g} has no room for {self.extra:g} more or less; choose another `extra`."
            )
        return run.counts((1.0 - final - more) / max(1.0 - final, 1e-12))

    def _grown(
        self, run: Training, stay: Mapping[str, Tensor], counts: Counts, score: Score
    ) -> dict[str, Bool[Tensor, "rows cols"]]:
        scores = run.scores(score)
        return run.choose({s.name: scores[s.name].masked_fill(stay[s.name], torch.inf) for s in run.sites}, counts)
