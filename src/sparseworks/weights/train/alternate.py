"""Dense and sparse phases in turn: the support may change completely whenever a dense phase ends."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparseworks.core.regime import REGIMES, Regime, Training


def full(run: Training) -> bool:
    """Nothing is dropped at the moment."""
    return all(bool(s.mask.all()) for s in run.sites)


@REGIMES.register("alternate")
@dataclass(frozen=True)
class Alternate(Regime):
    """Dense for `warmup`, then sparse and dense phases of `phase` in turn, a longer dense one, and a last sparse one.

    Each sparse phase begins with the best support of the weights that the dense phase left and holds it. All as shares of the
    run; the defaults are the 100 epochs of ResNet-50 on ImageNet: 10 dense, 5 and 5 in turn, 10 dense, 15 sparse.

    Source: Peste, Iofinova, Vladu and Alistarh, 2021, arXiv 2106.12379 (AC/DC).
    """

    warmup: float = 0.1
    phase: float = 0.05
    dense_end: float = 0.1
    sparse_end: float = 0.15
    timed = True

    def sparse(self, progress: float) -> bool:
        """Whether the phase at `progress` is a sparse one."""
        if progress < self.warmup or 1 - self.sparse_end - self.dense_end <= progress < 1 - self.sparse_end:
            return False
        return progress >= 1 - self.sparse_end or int((progress - self.warmup) / self.phase + 1e-6) % 2 == 0

    def due(self, run: Training) -> bool:
        """Where a phase ends."""
        return self.sparse(run.progress) == full(run)

    def change(self, run: Training) -> None:
        """To the other kind of phase."""
        run.keep(
            run.choose(run.scores(), run.counts())
            if full(run)
            else {s.name: torch.ones_like(s.mask) for s in run.sites}
        )

    def end(self, run: Training) -> None:
        """Sparse, in any case."""
        if full(run):
            self.change(run)
