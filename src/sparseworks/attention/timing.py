"""Timing: in which layers, at which steps and lengths a method acts, and how often it selects anew."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from torch.nn import functional as F

from sparseworks.attention.heads import Heads
from sparseworks.core.errors import BudgetError
from sparseworks.core.registry import Registry

TIMINGS: Registry[type[Timing]] = Registry("timing", "sparseworks.attention")


class Timing:
    """Register a frozen dataclass; `acts` says whether this call is sparse, `selects` whether its units are chosen anew."""

    registered_name: ClassVar[str] = ""

    def acts(self, heads: Heads) -> bool:
        """False: dense attention."""
        return True

    def selects(self, heads: Heads) -> bool:
        """False: the units chosen last for this layer are kept; asked only where there are any and they still fit."""
        return True


@TIMINGS.register("always")
@dataclass(frozen=True)
class Always(Timing):
    """Every call."""


@TIMINGS.register("from")
@dataclass(frozen=True)
class From(Timing):
    """Dense in the first `layers` layers (a share of all below 1), for the first `steps` (share of denoising steps) and below `keys` keys.

    Attributes:
        every: units are chosen anew at every so many calls of a layer (1: always).
    """

    layers: float = 0
    steps: float = 0.0
    keys: int = 0
    every: int = 1

    def __post_init__(self):
        if self.layers < 0 or self.keys < 0 or self.every < 1 or not 0 <= self.steps <= 1:
            raise BudgetError(f"Layers and keys are at least 0, every at least 1, steps a share in [0, 1]; got {self}.")

    def acts(self, heads: Heads) -> bool:
        """Whether the layer, the step and the length are beyond the dense ones."""
        first = self.layers * heads.layers if self.layers < 1 else self.layers
        return heads.layer >= first - 1e-9 and heads.step >= self.steps * heads.steps - 1e-9 and heads.keys >= self.keys

    def selects(self, heads: Heads) -> bool:
        """Every `every`-th call."""
        calls = heads.memory["calls"] = heads.memory.get("calls", -1) + 1
        return calls % self.every == 0


@TIMINGS.register("alike")
@dataclass(frozen=True)
class Alike(Timing):
    """Units are chosen anew once cos(q, q of the last choice) < `least`, over the queries of all heads together.

    (TokenSelect: Wu et al. 2024, arXiv 2411.02886, who take .9.)
    """

    least: float = 0.9

    def selects(self, heads: Heads) -> bool:
        """Whether the query has turned away; a batch chooses anew with its most different sequence."""
        q, last = heads.q.flatten(1).float(), heads.memory.get("query")
        if last is not None and last.shape == q.shape and bool((F.cosine_similarity(q, last, -1) >= self.least).all()):
            return False
        heads.memory["query"] = q.detach()
        return True


@TIMINGS.register("searches")
@dataclass(frozen=True)
class Searches(Timing):
    """Dense at first; units are chosen when a share `at` of the denoising steps has passed, and stay until the next is reached.

    One share is "dense, then frozen" (SparseD), several are searches (AdaSpa).
    """

    at: tuple[float, ...] = (0.2, 0.6)

    def __post_init__(self):
        if not self.at or list(self.at) != sorted(self.at) or not 0 <= self.at[0] <= self.at[-1] <= 1:
            raise BudgetError(f"Searches are made at rising shares of the steps in [0, 1]; got {self.at}.")

    def acts(self, heads: Heads) -> bool:
        """From the first search on."""
        return self._passed(heads) > 0

    def selects(self, heads: Heads) -> bool:
        """Once for every share passed, also where its very step was skipped."""
        before, now = heads.memory.get("searches"), self._passed(heads)
        heads.memory["searches"] = now
        return now != before

    def _passed(self, heads: Heads) -> int:
        return sum(heads.step >= share * heads.steps - 1e-9 for share in self.at)


@TIMINGS.register("periodic")
@dataclass(frozen=True)
class Periodic(Timing):
    """Dense for the share `first` of the denoising steps, then one dense step of every `every`; rests learn from the dense ones."""

    first: float = 0.25
    every: int = 5

    def __post_init__(self):
        if not 0 <= self.first <= 1 or self.every < 1:
            raise BudgetError(f"`first` is a share in [0, 1] and `every` at least 1; got {self}.")

    def acts(self, heads: Heads) -> bool:
        """Between the dense steps."""
        since = heads.step - ceil(self.first * heads.steps - 1e-9)
        return since >= 0 and since % self.every != 0
