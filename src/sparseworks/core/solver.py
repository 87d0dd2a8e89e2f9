"""Repair: values, given the support. Solver: support and values together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.pattern import Keep, Pattern
from sparseworks.core.registry import Registry
from sparseworks.core.score import Score
from sparseworks.core.select import select
from sparseworks.core.stats import Stat, Stats
from sparseworks.core.support import Support

REPAIRS: Registry[type[Repair]] = Registry("repair", "sparseworks.repair")
SOLVERS: Registry[type[Solver]] = Registry("solver", "sparseworks.solve")


def masked(weight: Float[Tensor, "rows cols"], support: Support) -> Float[Tensor, "rows cols"]:
    """`weight` on the support, exact zeros elsewhere (also where the weight is not finite)."""
    return torch.where(
        support.mask().to(weight.device), weight, torch.zeros((), dtype=weight.dtype, device=weight.device)
    )


class Repair:
    """`repair(weight, support, stats) -> weight`: makes the error good; exact zeros outside the support."""

    needs: frozenset[type[Stat]] = frozenset()
    registered_name: ClassVar[str]

    def __call__(
        self, weight: Float[Tensor, "rows cols"], support: Support, stats: Stats
    ) -> Float[Tensor, "rows cols"]:
        """The repaired weight."""
        raise NotImplementedError

    def bias(
        self, weight: Float[Tensor, "rows cols"], repaired: Float[Tensor, "rows cols"], stats: Stats
    ) -> Float[Tensor, " rows"] | None:
        """What to add to the layer's bias, or None."""
        del weight, repaired, stats
        return None


@REPAIRS.register("none")
@dataclass(frozen=True)
class Nothing(Repair):
    """M * W: the weights that stay are left as they are."""

    def __call__(
        self, weight: Float[Tensor, "rows cols"], support: Support, stats: Stats
    ) -> Float[Tensor, "rows cols"]:
        """M * W."""
        del stats
        return masked(weight, support)


class Solver:
    """`solver(weight, stats, score, pattern, keep) -> (weight, support)`: owns the loop and calls select inside it."""

    needs: frozenset[type[Stat]] = frozenset()
    registered_name: ClassVar[str]

    def __call__(
        self, weight: Float[Tensor, "rows cols"], stats: Stats, score: Score, pattern: Pattern, keep: Keep | None
    ) -> tuple[Float[Tensor, "rows cols"], Support]:
        """New weight (exact zeros outside the support) and the support."""
        raise NotImplementedError

    def bias(
        self, weight: Float[Tensor, "rows cols"], repaired: Float[Tensor, "rows cols"], stats: Stats
    ) -> Float[Tensor, " rows"] | None:
        """What to add to the layer's bias, or None."""
        del weight, repaired, stats
        return None


@SOLVERS.register("select")
@dataclass(frozen=True)
class Select(Solver):
    """Choose by score, then fix the values with a repair."""

    repair: Repair = field(default_factory=Nothing)

    @property
    def needs(self) -> frozenset[type[Stat]]:  # type: ignore[override]
        """Needs of the repair."""
        return self.repair.needs

    def __call__(
        self, weight: Float[Tensor, "rows cols"], stats: Stats, score: Score, pattern: Pattern, keep: Keep | None
    ) -> tuple[Float[Tensor, "rows cols"], Support]:
        """select, then repair."""
        support = select(score(weight, stats), pattern, keep)
        return self.repair(weight, support, stats), support

    def bias(
        self, weight: Float[Tensor, "rows cols"], repaired: Float[Tensor, "rows cols"], stats: Stats
    ) -> Float[Tensor, " rows"] | None:
        """The repair's."""
        return self.repair.bias(weight, repaired, stats)
