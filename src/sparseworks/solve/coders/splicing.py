"""Best subset selection by splicing: atoms of least worth in the support are exchanged for those of most worth outside."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.budget import Budget, Count
from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import ROW, Pattern
from sparseworks.core.select import select_mask
from sparseworks.solve.coder import CODERS, Coder, Solution
from sparseworks.solve.coders.problem import EIGHT, Problem, most_atoms, needs_matrix, rounding, solution
from sparseworks.solve.linear import LinearMap

_PER_SIGNAL = Pattern(group=ROW)
_PRICES = {
    "aic": lambda m, n: 2.0,
    "bic": lambda m, n: log(m),
    "ebic": lambda m, n: log(m) + 2 * log(n),
    "gic": lambda m, n: log(n) * log(log(m)),
}
"""What an atom costs, of m samples and n atoms; the fit costs m log(RSS / m)."""


@CODERS.register("splicing")
@dataclass(frozen=True)
class Splicing(Coder):
    """Exchanges k = 1..`exchanges` atoms at once, least ||d_j||^2 z_j^2 inside for most <d_j, r>^2 / ||d_j||^2 outside, while that helps.

    The best k is taken as long as it lowers the squared error by more than its share `least`; the certificate is the last share gained.

    Attributes:
        budget: `Count(s)`: s atoms, or at most s where `choose` is given.
        choose: None, or the criterion by which each signal takes one of the sizes 1..s: "gic", "ebic", "bic", "aic".
        exchanges: most atoms exchanged at once.
        least: share of the squared error that an exchange must gain; None: 0.01 s log(n) log(log m) / m for n atoms, m samples.
        rounds: never more exchanges than this for a size.

    Raises:
        BudgetError: not a count, more atoms than can be independent, or an unknown criterion.

    Source: Zhu, Wen, Zhu, Zhang and Wang, 2020 (PNAS 117(52)), abess; 2 exchanges are the default of its R package, 5 of its Python package. `least` is theirs for noise of
    variance 1, here relative to the error, so that units do not matter.
    """

    budget: Budget = EIGHT
    choose: str | None = None
    exchanges: int = 2
    least: float | None = None
    rounds: int = 20

    def __post_init__(self) -> None:
        if self.choose is not None and self.choose not in _PRICES:
            raise BudgetError(f"Sizes are chosen by {', '.join(_PRICES)}, not by {self.choose!r}.")

    def refuses(self, dictionary: LinearMap) -> str | None:
        """Maps that are not real matrices."""
        return needs_matrix("Splicing", dictionary)

    def solve(self, dictionary: LinearMap, signals: Float[Tensor, "rows m"], start: Tensor | None) -> Solution:
        """One size, or all sizes up to it, each from the support of the one before."""
        del start
        problem, y = Problem(dictionary), signals
        if not isinstance(self.budget, Count):
            raise BudgetError(
                f"Splicing takes Count, not {self.budget}; for a size that it chooses itself, choose='gic'."
            )
        most, _ = most_atoms(self.budget, min(problem.codes, problem.features))
        z = torch.zeros(len(y), problem.codes, dtype=y.dtype, device=y.device)
        steps, gain = torch.zeros(len(y), dtype=torch.long, device=y.device), z.new_zeros(len(y))
        if not most or not len(y):
            return solution(problem, z, steps, gain, 0.0, "change")
        least, best = self._least(problem, most), z.new_full((len(y),), torch.inf)
        found = z
        for s in range(1, most + 1) if self.choose else (most,):
            found, rounds, last = self._spliced(problem, y, _grown(problem, y, found, s))
            cost = self._cost(problem, y, found, s)
            better = cost < best
            best, z = torch.where(better, cost, best), torch.where(better.unsqueeze(1), found, z)
            steps, gain = steps + rounds + 1, torch.where(better, last, gain)
        return solution(problem, z, steps, gain, least, "change")

    def _least(self, problem: Problem, s: int) -> float:
        if self.least is not None:
            return self.least
        m, n = max(problem.features, 3), max(problem.codes, 2)
        return 0.01 * s * log(n) * max(log(log(m)), 0.0) / m

    def _cost(self, problem: Problem, y: Tensor, z: Tensor, s: int) -> Tensor:
        if self.choose is None:
            return torch.zeros_like(y[:, 0])
        m, n = max(problem.features, 3), max(problem.codes, 2)
        # An error below rounding is none: otherwise noise of the last digits would pay for more atoms.
        floor = (rounding(y.dtype) ** 2 * y.square().sum(1)).clamp(min=1e-30)
        return m * (_error(problem, y, z).clamp(min=floor) / m).log() + s * _PRICES[self.choose](m, n)

    def _spliced(
        self, problem: Problem, y: Tensor, support: Bool[Tensor, "rows n"]
    ) -> tuple[Float[Tensor, "rows n"], Int[Tensor, " rows"], Float[Tensor, " rows"]]:
        z, s = problem.fit(y, support), int(support[0].sum())
        error, rounds, last = (
            _error(problem, y, z),
            torch.zeros_like(y[:, 0], dtype=torch.long),
            torch.zeros_like(y[:, 0]),
        )
        least, on = self._least(problem, s), torch.arange(len(y), device=y.device)
        floor = rounding(y.dtype) ** 2 * y.square().sum(1)
        for _ in range(self.rounds):
            on = on[error[on] > floor[on]]
            if not len(on):
                break
            swapped, best = self._exchange(problem, y[on], z[on], support[on])
            last[on] = (1 - best / error[on]).clamp(min=0)
            won = last[on] > least
            on, swapped = on[won], swapped[won]
            support[on], z[on] = swapped, problem.fit(y[on], swapped)
            error[on], rounds[on] = best[won], rounds[on] + 1
        return z, rounds, torch.where(error > floor, last, 0.0)

    def _exchange(self, problem: Problem, y: Tensor, z: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
        """The best of the exchanges of 1, 2, ... atoms, and its error."""
        worth = -_norms(problem) * z.double().square()
        promise = _promise(problem, y, z)
        best, kept = y.new_full((len(y),), torch.inf), support
        s = int(support[0].sum())
        for k in range(1, min(self.exchanges, s, problem.codes - s) + 1):
            out = select_mask(worth.masked_fill(~support, -torch.inf), _PER_SIGNAL, k)
            come = select_mask(promise.masked_fill(support, -torch.inf), _PER_SIGNAL, k)
            candidate = (support & ~out) | come
            error = _error(problem, y, problem.fit(y, candidate))
            better = error < best
            best, kept = torch.where(better, error, best), torch.where(better.unsqueeze(1), candidate, kept)
        return kept, best


def _error(problem: Problem, y: Tensor, z: Tensor) -> Float[Tensor, " rows"]:
    return (y - problem.forward(z)).square().sum(1)


def _grown(problem: Problem, y: Tensor, z: Tensor, s: int) -> Bool[Tensor, "rows n"]:
    """The support of z, and beyond it the atoms that correlate most with what is left, s in all."""
    return select_mask(_promise(problem, y, z).masked_fill(z != 0, torch.inf), _PER_SIGNAL, s)


def _norms(problem: Problem) -> Float[Tensor, " n"]:
    return problem.gram.diagonal().clamp(min=torch.finfo(torch.float64).tiny)


def _promise(problem: Problem, y: Tensor, z: Tensor) -> Float[Tensor, "rows n"]:
    """<d_j, r>^2 / ||d_j||^2, in float64: what squares lose or overflow would make the choice."""
    return problem.adjoint(y - problem.forward(z)).double().square() / _norms(problem)
