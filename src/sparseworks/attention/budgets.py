"""Budgets of attention that look at more than one row of scores: at all heads of a call, or at the call itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.core.budget import BUDGETS, Budget, Density, Mass
from sparseworks.core.errors import BudgetError
from sparseworks.core.select import top


class CallBudget(Budget):
    """A budget that depends on the call: the step, the layer, how many keys there are."""

    def at(self, heads: Heads) -> Budget:
        """The budget of this call."""
        raise NotImplementedError


@BUDGETS.register("head_adaptive")
@dataclass(frozen=True)
class HeadAdaptive(Budget):
    """A density for heads on average: those that it serves well get less, those that it serves badly get as much more.

    r_h = mean over rows of the share of the mass that the best `value` n units hold; heads in the order of r_h get
    k + round(span k c_h) units a row with c_h from -1 (largest r) to 1 (smallest) in equal steps, so the mean is k = value n
    (Xia et al. 2025, arXiv 2502.21079; the linear steps and their size are our reading). Scores must be shares.

    Raises:
        BudgetError: a value outside (0, 1], a span outside [0, 1].
    """

    value: float
    span: float = 0.5
    needs_scores = True

    def __post_init__(self):
        if not 0 < self.value <= 1 or not 0 <= self.span <= 1:
            raise BudgetError(f"A density lies in (0, 1] and a span in [0, 1]; got {self}.")

    def counts(self, grouped: Float[Tensor, "batch heads rows n"]) -> Int[Tensor, "batch heads rows"]:
        """Units of every row."""
        if grouped.dim() != 4:
            raise BudgetError("Heads are compared over rows of units: the pattern's group is a row.")
        there = (grouped > -torch.inf).sum(-1)
        mass = grouped.clamp(min=0).double()
        even = torch.minimum((there * self.value).round().long().clamp(min=1), there)
        held = (mass * top(grouped, even)).sum(-1) / mass.sum(-1).clamp(min=1e-30)
        place = held.mean(-1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        last = max(grouped.shape[1] - 1, 1)
        lean = (2 * place - (grouped.shape[1] - 1)) / last
        room = torch.minimum((even * self.span).round(), torch.minimum(even - 1, there - even)).clamp(min=0)
        return even + (lean.unsqueeze(-1) * room).round().long()


@BUDGETS.register("head_mass")
@dataclass(frozen=True)
class HeadMass(Budget):
    """Of every head the fewest units of a row whose shares reach the head's own part of the row's sum.

    Raises:
        BudgetError: a value outside [0, 1].
    """

    values: tuple[float, ...]
    needs_scores = True

    def __post_init__(self):
        for value in self.values:
            Mass(value)

    @classmethod
    def example(cls) -> HeadMass:
        """One."""
        return cls((0.9, 0.8))

    def counts(self, grouped: Float[Tensor, "batch heads rows n"]) -> Int[Tensor, "batch heads rows"]:
        """As `Mass` counts, head by head.

        Raises:
            BudgetError: another number of heads.
        """
        if grouped.dim() != 4 or grouped.shape[1] != len(self.values):
            raise BudgetError(f"There are masses for {len(self.values)} heads; the scores are {tuple(grouped.shape)}.")
        return torch.stack([Mass(v).counts(grouped[:, h]) for h, v in enumerate(self.values)], 1)


@BUDGETS.register("growing")
@dataclass(frozen=True)
class Growing(CallBudget):
    """Sparsity that grows over the chunks of an autoregressive video, as many products in all as with one density.

    The first chunk is dense. Chunk i = 2, 3, ... attends to i chunks of keys; its density is base + beta / sqrt(i), at most 1, with
    base = `least` value and beta such that sum_i i density_i = value sum_i i over chunks 2 to `chunks` (Lv et al. 2026, arXiv
    2602.04789: sparsity s_base - beta a_i with a_i ~ 1 / sqrt(frames so far); the published settings are sparsities of .88 with
    a base of .98, and .8 with .9 for blocks of 128).

    Attributes:
        value: density of chunks 2 to `chunks`, by products.
        chunks: of a video; 7 of three frames in the paper.
        least: base density over value.

    Raises:
        BudgetError: values outside (0, 1], or no chunks.
    """

    value: float
    chunks: int = 7
    least: float = 1 / 6

    def __post_init__(self):
        if not 0 < self.value <= 1 or not 0 <= self.least <= 1 or self.chunks < 1:
            raise BudgetError(f"Densities lie in (0, 1] and there is at least one chunk; got {self}.")

    def at(self, heads: Heads) -> Budget:
        """By how often the queries go into the keys; what comes after the last chunk is as sparse as that."""
        chunk = max(1, round(heads.keys / max(heads.queries, 1)))
        return Density(self.densities()[min(chunk, self.chunks) - 1])

    def densities(self) -> list[float]:
        """Of every chunk, falling."""
        later = range(2, self.chunks + 1)
        density = lambda i, beta: min(1.0, self.least * self.value + beta * i**-0.5)  # noqa: E731
        low, high = 0.0, self.chunks**0.5
        for _ in range(60):
            beta = (low + high) / 2
            less = sum(i * density(i, beta) for i in later) < self.value * sum(later)
            low, high = (beta, high) if less else (low, beta)
        return [1.0, *(density(i, high) for i in later)]


@BUDGETS.register("measured")
@dataclass(frozen=True)
class Measured(CallBudget):
    """Of every head the share of keys that was seen to be critical, times `slack`; all until something was seen (DSV)."""

    slack: float = 1.0

    def at(self, heads: Heads) -> Budget:
        """From `heads.learned["critical"]`."""
        seen = heads.learned.get("critical")
        return Density(1.0) if seen is None else _ByHead(tuple((self.slack * seen).clamp(max=1.0).tolist()))


@dataclass(frozen=True)
class _ByHead(Budget):
    """A density of every head."""

    values: tuple[float, ...]
    needs_scores = True

    def counts(self, grouped: Float[Tensor, "batch heads rows n"]) -> Int[Tensor, "batch heads rows"]:
        """round(density_h n), at least 1."""
        there = (grouped > -torch.inf).sum(-1)
        share = torch.tensor(self.values, device=grouped.device).view(1, -1, 1)
        return torch.minimum((there * share).round().long().clamp(min=1), there)
