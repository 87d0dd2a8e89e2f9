"""Error feedback within supports that others decide: gradients of the sparse model move what it leaves out as well."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from sparseworks.core.allocator import Evidence
from sparseworks.core.budget import Density
from sparseworks.core.patterns import parse
from sparseworks.core.regime import REGIMES, Regime, Training
from sparseworks.core.schedule import Schedule, Stairs
from sparseworks.core.select import select_mask
from sparseworks.scores import Random
from sparseworks.weights.train.gradual import Gradual
from sparseworks.weights.train.hold import Hold


@REGIMES.register("feedback")
@dataclass(frozen=True)
class Feedback(Hold):
    """W <- W - lr (g(M * W) + rate * M * W / ||M * W||_2), the support M held: dropped entries gather what they are asked for.

    They take no part in the model; whoever chooses the next support sees them. The second term is the gradient of
    rate * sum over layers of ||M * W_l||_2.

    Source: Long et al., 2023, arXiv 2309.06805 (what a client of FedDIP does).

    Attributes:
        kept_only: move kept entries alone: masked gradients, the usual way to train a sparse model.
        penalty: `rate` at every progress of the run; None = 0.
    """

    kept_only: bool = False
    penalty: Schedule | None = None
    dense = True

    def before(self, run: Training) -> None:
        """Mask the gradients where that is wanted, and add those of the penalty."""
        rate = self.penalty(run.progress) if self.penalty else 0.0
        for site in run.sites:
            gradient = site.gradient() * site.mask if self.kept_only else site.gradient()
            if rate:
                kept = site.weight() * site.mask
                gradient = gradient + rate * kept / kept.norm().clamp(min=1e-12)
            if rate or self.kept_only:
                site.set_gradient(gradient)


@REGIMES.register("reconfigure")
@dataclass(frozen=True)
class Reconfigure(Gradual):
    """A random support of density `first`, shared out by the method's allocation; then every `every` steps the method's choice
    among all entries, down to its budget along its schedule. What is not chosen is forgotten.

    A step is a round where a `Server` runs it; s_t = s_f + (s_0 - s_f)(1 - schedule(t)).

    Source: Long et al., 2023, arXiv 2309.06805 (FedDIP: Erdos-Renyi-kernel start, cubic schedule, 5 to 20 rounds).

    Attributes:
        first: density at the start, if the budget is below it.
        local: what clients do between two steps.
    """

    every: int = 5
    stop: float = 1.0
    regrow: bool = True
    first: float = 0.5
    local: Regime = field(default_factory=lambda: Feedback(penalty=Stairs()))
    dense = True

    def begin(self, run: Training) -> None:
        """The random support."""
        sites, weights = [s.site for s in run.sites], {s.name: s.weight() for s in run.sites}
        counts = run.method.allocate(sites, Density(self._start(run)), evidence=Evidence(weights.__getitem__))
        drawn, whole = run.scores(Random()), parse("tensor")
        run.keep({name: select_mask(scores, whole, counts[name]) for name, scores in drawn.items()})
        self._forget(run)

    def _prune(self, run: Training, share: float) -> None:
        final = self._final(run)
        done = (1.0 - self._start(run)) / (1.0 - final) if final < 1.0 else 1.0
        super()._prune(run, done + (1.0 - done) * share)
        self._forget(run)

    def _start(self, run: Training) -> float:
        return max(self.first, self._final(run))

    def _final(self, run: Training) -> float:
        kept = sum(int(c.sum()) for c in run.counts().values())
        return kept / sum(s.site.size for s in run.sites)

    @torch.no_grad()
    def _forget(self, run: Training) -> None:
        for site in run.sites:
            site.put(site.weight() * site.mask)
