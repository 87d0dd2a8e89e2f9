"""Orthogonal matching pursuit, many signals at once on growing Cholesky factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.budget import Budget
from sparseworks.exec.codes import BatchCholesky
from sparseworks.solve.coder import CODERS, Coder, Solution
from sparseworks.solve.coders.problem import EIGHT, Problem, most_atoms, needs_matrix, rounding, share_left, solution
from sparseworks.solve.linear import LinearMap

_AT_ONCE = 1 << 19  # correlations held together: what a round touches stays near the caches


@CODERS.register("omp")
@dataclass(frozen=True)
class OMP(Coder):
    """Round by round the atom argmax_k |<d_k, y - z D>|, then least squares on all atoms chosen; atoms should have unit norm.

    A signal stops when its budget is used, when the share of its squared norm that is left is within the budget, or when no atom
    correlates with the residual beyond rounding. The certificate is that share.

    Attributes:
        budget: `Count(k)` atoms a signal, or `Residual(share)`: as few as leave at most this share of the squared norm.
        most: with `Residual`: never more atoms than this.

    Raises:
        BudgetError: another kind of budget, or more atoms than can be independent.

    Source: Pati, Rezaiifar and Krishnaprasad, 1993; in batches, Rubinstein, Zibulevsky and Elad, 2008 (Batch-OMP).
    """

    budget: Budget = EIGHT
    most: int | None = None

    def refuses(self, dictionary: LinearMap) -> str | None:
        """Maps that are not real matrices."""
        return needs_matrix("OMP", dictionary)

    def solve(self, dictionary: LinearMap, signals: Float[Tensor, "rows m"], start: Tensor | None) -> Solution:
        """Some signals at a time; there are no values to start from."""
        del start
        problem = Problem(dictionary)
        d = problem.matrix
        most, share = most_atoms(self.budget, min(d.shape), self.most)
        gram = d @ d.T
        some = max(16, _AT_ONCE // len(d))
        parts = [_pursue(d, gram, y, most, share) for y in signals.split(some)]
        z = torch.cat([p[0] for p in parts]) if parts else signals.new_zeros(0, len(d))
        steps = torch.cat([p[1] for p in parts]) if parts else torch.zeros(0, dtype=torch.long, device=signals.device)
        left = share_left(signals - z @ d, signals)
        return solution(problem, z, steps, left, max(share, rounding(d.dtype) ** 2), "residual")


def _pursue(
    d: Float[Tensor, "atoms m"], gram: Float[Tensor, "atoms atoms"], y: Float[Tensor, "rows m"], most: int, share: float
) -> tuple[Float[Tensor, "rows atoms"], Int[Tensor, " rows"]]:
    right = y @ d.T
    factors = BatchCholesky(gram, right, most)
    chosen = torch.zeros(len(y), most, dtype=torch.long, device=y.device)
    count = chosen.new_zeros(len(y))
    going = torch.ones(len(y), dtype=torch.bool, device=y.device)
    left, z = right, right.new_zeros(len(y), 0)
    scale = rounding(y.dtype) * right.abs().amax(1), rounding(y.dtype) * gram.diagonal().amax()
    for n in range(most):
        # One of each row: the arg max is `select` of one, and the innermost loop of the pursuit.
        size, atoms = left.abs().scatter_(1, chosen[:, :n], -1.0).max(dim=1)
        going &= size > scale[0] + scale[1] * z.abs().sum(1)
        if share > 0:
            going &= share_left(y - _combine(z, chosen[:, :n], d), y) > share
        if not bool(going.any()):
            break
        # The largest correlation on an atom that depends on those chosen: it is rounding, and so are all others.
        going &= factors.append(torch.where(going, atoms, -1))
        chosen[:, n] = torch.where(going, atoms, 0)
        count += going
        z = factors.solve()
        left = (
            right - _combine(z, chosen[:, : n + 1], gram)
            if _compiled(y)
            else (y - _combine(z, chosen[:, : n + 1], d)) @ d.T
        )
    return torch.zeros_like(right).scatter_add_(1, chosen[:, : z.shape[1]], z), count


def _compiled(y: Tensor) -> bool:
    return y.is_cpu and y.dtype is torch.float32


def _combine(z: Float[Tensor, "rows k"], chosen: Int[Tensor, "rows k"], atoms: Float[Tensor, "atoms m"]) -> Tensor:
    """Sums of the chosen rows; dense where there is no kernel, since gathered rows would take rows * k * m numbers."""
    if _compiled(z):
        return torch.ops.sparseworks.decode(z, chosen.contiguous(), atoms, None)
    return z.new_zeros(len(z), len(atoms)).scatter_add_(1, chosen, z) @ atoms
