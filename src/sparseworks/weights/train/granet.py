"""GraNet: gradual pruning by one threshold for the whole model, and as many weights of each layer exchanged as in RigL."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.core.pattern import Pattern
from sparseworks.core.regime import REGIMES, Counts, Training
from sparseworks.core.schedule import Cubic, Schedule
from sparseworks.core.select import select_mask
from sparseworks.weights.train.dropgrow import DropGrow, among_kept


@REGIMES.register("prune_regrow")
@dataclass(frozen=True)
class PruneRegrow(DropGrow):
    """Every `every` steps: prune to the count of the ramp, by the method's pattern; then exchange a share of each layer's rest.

    Of the n_l weights that pruning leaves in layer l, floor(schedule(t / stop) n_l) go by the method's score, and as many come by
    `grow`. With pattern "global" layers find their own densities by the pruning, and the exchange leaves them as they are.

    Source: Liu et al., 2021, arXiv 2106.10404 (GraNet; exchanged share 0.5, by a cosine to 0 over the whole training, of which
    about 0.7 prune).

    Attributes:
        ramp: share of the final sparsity at t / until.
        until: share of the run after which nothing more is pruned.
        stop: share of the run after which nothing more is exchanged.
    """

    ramp: Schedule | None = field(default_factory=Cubic)
    until: float = 0.7
    stop: float = 1.0

    def _counts(self, run: Training) -> Counts:
        return run.counts(self.ramp(run.progress / self.until) if self.ramp else 1.0)

    def change(self, run: Training) -> None:
        """Prune, then exchange."""
        pruned = run.choose(among_kept(run, run.scores(known=self._known(run))), self._counts(run))
        drop, grow = run.scores(known=self._known(run)), run.scores(self.grow, self._known(run))
        masks = {}
        for s in run.sites:
            left, kept = pruned[s.name], int(pruned[s.name].sum())
            stay = _best(drop[s.name].masked_fill(~left, -torch.inf), kept - int(kept * self._share(run) + 1e-9))
            masks[s.name] = _best(grow[s.name].masked_fill(stay, torch.inf), kept)
        self._keep(run, masks)


def _best(scores: Float[Tensor, "rows cols"], count: int) -> Bool[Tensor, "rows cols"]:
    return select_mask(scores, Pattern(), count)
