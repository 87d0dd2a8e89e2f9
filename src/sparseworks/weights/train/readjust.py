"""Drop-and-grow at the clients of a federation: each moves its own support, the server decides among all that they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparseworks.core.errors import BudgetError
from sparseworks.core.regime import REGIMES, Counts, Training
from sparseworks.core.stats import Stat
from sparseworks.weights.train.dropgrow import DropGrow, among_kept


@REGIMES.register("readjust")
@dataclass(frozen=True)
class Readjust(DropGrow):
    """Once, after step `step`: every site drops the share `share` of what it keeps by the method's score, and grows as many by `grow`.

    It begins with the support it is given, and no site changes how much it keeps. `first`, `every`, `stop` and `ramp` say nothing here.

    Source: Bibikar et al., 2021, arXiv 2112.09824 (what a client of FedDST does).
    """

    share: float = 0.3
    step: int = 1
    timed: ClassVar[bool] = False

    def begin(self, run: Training) -> None:
        """The support is another's choice."""

    def due(self, run: Training) -> bool:
        """After that one step."""
        return run.done + 1 == self.step

    def _counts(self, run: Training) -> Counts:
        return {s.name: s.mask.sum().cpu().reshape(1) for s in run.sites}

    def _share(self, run: Training) -> float:
        del run
        return self.share


@REGIMES.register("client_drop_grow")
@dataclass(frozen=True)
class ClientDropGrow(DropGrow):
    """A random support; every `every` rounds of the first `stop`, clients exchange the share schedule(t / stop) of theirs and reply with
    what they hold now. The server averages each entry over those that hold it, and keeps the best by the method's score.

    m = union of m_k;  W = sum_k n_k m_k W_k / sum_k n_k m_k;  then the largest |W| of every group, as many as before.

    A step is a round, see `Server`; elsewhere there are no clients, and the support stays what it was. In between all share the
    server's support.

    Source: Bibikar et al., 2021, arXiv 2112.09824 (FedDST). Rounds between, share and end are those of the authors' code.

    Attributes:
        at: share of a client's steps of the round after which it changes its support; what grew is trained for the rest.
    """

    every: int = 10
    stop: float = 0.5
    at: float = 0.5

    def __post_init__(self):
        if not 0.0 <= self.at <= 1.0:
            raise BudgetError(f"Clients change their supports after a share of their steps in [0, 1], got {self.at}.")

    @property
    def needs(self) -> frozenset[type[Stat]]:  # type: ignore[override]
        """None: gradients stay with the clients."""
        return frozenset()

    def due(self, run: Training) -> bool:
        """At the cadence, while there is anything to exchange."""
        return super().due(run) and self._share(run) > 0.0

    def share(self, run: Training) -> float:
        """Share of its support that a client exchanges in the round to come; 0 = none."""
        return self._share(run) if self.due(run) else 0.0

    @torch.no_grad()
    def change(self, run: Training) -> None:
        """Back to the counts: the best of what any client holds."""
        run.keep(run.choose(among_kept(run, run.scores()), self._counts(run)))
