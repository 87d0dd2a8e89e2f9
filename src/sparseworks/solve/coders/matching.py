"""Matching pursuit and gradient pursuit: greedy, and with nothing but products with the map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from sparseworks.core.budget import Budget
from sparseworks.solve.coder import CODERS, Coder, Solution
from sparseworks.solve.coders.problem import EIGHT, Problem, most_atoms, rounding, share_left, solution
from sparseworks.solve.linear import LinearMap


@dataclass(frozen=True)
class Greedy(Coder):
    """Takes the atom argmax_k |<d_k, r>|, then goes along a direction as far as lowers ||r|| most; a subclass names the direction.

    Once the budget is used, only atoms already chosen may be taken. Stops where no atom that may be taken correlates with the
    residual beyond rounding, or the share of the squared norm that is left (the certificate) is within the budget.

    Attributes:
        budget: `Count(k)` different atoms a signal, or `Residual(share)` of the squared norm that may be left.
        rounds: never more steps than this.
        nonnegative: values stay at 0 or above (real maps): an atom is taken for its correlation instead of its modulus, and a step ends with
            z = max(z, 0), atoms cut off leaving the support.
    """

    budget: Budget = EIGHT
    rounds: int = 100
    nonnegative: bool = False

    def direction(
        self, g: Shaped[Tensor, "rows n"], new: Bool[Tensor, "rows n"], support: Bool[Tensor, "rows n"]
    ) -> Shaped[Tensor, "rows n"]:
        """Where to go, from the correlations, the atom just taken, and all taken so far."""
        raise NotImplementedError

    def solve(self, dictionary: LinearMap, signals: Float[Tensor, "rows m"], start: Tensor | None) -> Solution:
        """All signals together; one that is done stays as it is."""
        del start
        problem = Problem(dictionary)
        most, share = most_atoms(self.budget, problem.codes)
        y = signals.flatten(1)
        z, r = problem.adjoint(torch.zeros_like(y)), y
        support, steps = torch.zeros(z.shape, dtype=torch.bool, device=z.device), torch.zeros(len(y), dtype=torch.long)
        steps, floor = steps.to(z.device), rounding(y.dtype) * problem.adjoint(y).abs().amax(1, keepdim=True)
        for _ in range(self.rounds if most else 0):
            g = problem.adjoint(r)
            full = support.sum(1, keepdim=True) >= most
            wish = g if self.nonnegative else g.abs()
            size, atom = wish.masked_fill(full & ~support, -1.0).max(dim=1, keepdim=True)
            going = (size > floor) & (share_left(r, y).unsqueeze(1) > share)
            if not bool(going.any()):
                break
            new = torch.zeros_like(support).scatter_(1, atom, going)
            support |= new
            p = self.direction(g, new, support) * going
            moved = problem.forward(p)
            length = moved.abs().square().sum(1, keepdim=True)
            along = (moved.conj() * r).real.sum(1, keepdim=True) / torch.where(length > 0, length, 1)
            z, r, steps = z + along * p, r - along * moved, steps + going.squeeze(1)
            if self.nonnegative and bool((below := z < 0).any()):
                z, support = z.clamp(min=0), support & ~below  # what was cut off may be chosen anew
                r = y - problem.forward(z)
        left = share_left(y - problem.forward(z), y)
        return solution(problem, z, steps, left, max(share, rounding(y.dtype) ** 2), "residual")


@CODERS.register("mp")
@dataclass(frozen=True)
class MP(Greedy):
    """Matching pursuit: z_k += <d_k, r> / ||d_k||^2 for the atom with the largest correlation; any linear map.

    Source: Mallat and Zhang, 1993.
    """

    def direction(
        self, g: Shaped[Tensor, "rows n"], new: Bool[Tensor, "rows n"], support: Bool[Tensor, "rows n"]
    ) -> Shaped[Tensor, "rows n"]:
        """That atom alone."""
        del support
        return torch.where(new, g, torch.zeros_like(g))


@CODERS.register("gradient_pursuit")
@dataclass(frozen=True)
class GradientPursuit(Greedy):
    """An atom a round as in matching pursuit, then an exact step along the gradient on all atoms chosen; any linear map.

    Source: Blumensath and Davies, 2008 (Gradient Pursuits).
    """

    def direction(
        self, g: Shaped[Tensor, "rows n"], new: Bool[Tensor, "rows n"], support: Bool[Tensor, "rows n"]
    ) -> Shaped[Tensor, "rows n"]:
        """The correlations on the support."""
        del new
        return torch.where(support, g, torch.zeros_like(g))
