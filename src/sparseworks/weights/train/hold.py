"""A support that is chosen once and held while the model trains."""

from __future__ import annotations

from dataclasses import dataclass

from sparseworks.core.regime import REGIMES, Regime, Training


@REGIMES.register("hold")
@dataclass(frozen=True)
class Hold(Regime):
    """The method's support of the model as it is at the start: pruning at initialisation, random masks, recovery."""

    moves = False

    def begin(self, run: Training) -> None:
        """Score and select once."""
        run.keep(run.choose(run.scores(), run.counts()))
