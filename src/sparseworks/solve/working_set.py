"""One signal in a large dictionary: working sets that grow, prox-Newton steps on them, and gap-safe screening of the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.select import top
from sparseworks.solve.certificate import duality_gap
from sparseworks.solve.datafit import Datafit
from sparseworks.solve.datafits import Quadratic
from sparseworks.solve.inner_products import descend_quadratic, descend_residual, restrict
from sparseworks.solve.penalties import L1, NonNegativeL1, WeightedL1
from sparseworks.solve.penalty import Penalty

_FIRST = 100  # atoms in the first working set
_INSIDE = 0.03  # violation left in a working set, of the worst among all atoms
_TALL = 4  # from so many features an atom on, looking at atoms may be cheaper than inner products
_LOOK = 8  # inner products that take the time of a look at one atom


@dataclass
class Found:
    """Codes of one signal, passes, the certificate, what it is, and how many atoms were proven to be 0."""

    z: Tensor
    steps: int
    number: float
    proves: str
    screened: int


def solve_one(
    atoms: Float[Tensor, "n m"],
    norms: Float[Tensor, " n"],
    y: Float[Tensor, " m"],
    datafit: Datafit,
    penalty: Penalty,
    start: Float[Tensor, " n"],
    *,
    tolerance: float,
    passes: int,
    screen: bool = True,
) -> Found:
    """argmin f(z D; y) + g(z), g separable, one z.

    Each round looks at all atoms once (gap, screening, violations), takes as many of the worst into the working set as the
    support is large, and solves there: the quadratic by its inner products, any other datafit by prox-Newton steps. Of a tall
    quadratic all atoms that are left are visited on the residual, until that took the time of their inner products.

    Source: working sets as Massias, Gramfort and Salmon, 2018, arXiv 1802.07481; sphere as Ndiaye, Fercoq, Gramfort and
    Salmon, 2017, arXiv 1611.05780.
    """
    problem = _One(atoms, norms, y, datafit, penalty)
    begun = (start != 0).to(y.dtype)
    problem.take(torch.where(begun > 0, begun, -torch.inf), len(start))
    z, steps, stuck = start.clone(), 0, 0
    left = None  # atoms that are not screened, once so few that a copy of them pays
    screened = torch.zeros(len(atoms), dtype=torch.bool, device=atoms.device)
    before = torch.inf
    while True:
        u = problem.predict(z)
        slope = datafit.gradient(u, y)
        correlation = atoms @ slope if left is None else _scattered(atoms, left, slope)
        number, proves = problem.number(z, u, slope, correlation)
        if screen and proves == "duality gap":
            screened |= problem.unneeded(u, slope, correlation, number)
        if number <= tolerance or steps >= passes:
            break
        if bool(screened.any()):
            if bool(z[screened].any()):
                z[screened] = 0
                u = problem.predict(z)
            if left is None and int(screened.sum()) > 0.7 * len(screened):
                kept = (~screened).nonzero()[:, 0]
                left = (kept, atoms[kept])
        violation = penalty.violation(z, correlation).masked_fill(screened, 0)
        worst = float(violation.max())
        stuck = stuck + 1 if worst >= before else 0
        if stuck > 3:
            break  # rounding allows no more
        before = min(worst, before)
        missing = violation > worst * _INSIDE
        missing[problem.kept] = False
        if bool(missing.any()):
            room = max(int((z != 0).sum()), _FIRST)
            problem.take(problem.urgency(correlation, screened), room)
        z, used = problem.descend(z, u, screened, correlation, worst * _INSIDE, passes - steps)
        steps += max(used, 1)
    return Found(z, steps, number, proves, int(screened.sum()))


def _scattered(atoms: Tensor, left: tuple[Tensor, Tensor], slope: Tensor) -> Tensor:
    kept, some = left
    return slope.new_zeros(len(atoms)).index_copy(0, kept, some @ slope)


class _One:
    """The problem of one signal, and what is asked of it every round."""

    def __init__(self, atoms: Tensor, norms: Tensor, y: Tensor, datafit: Datafit, penalty: Penalty):
        self.atoms, self.norms, self.y, self.datafit, self.penalty = atoms, norms, y, datafit, penalty
        zero = torch.zeros_like(y)
        self.worth = max(float(datafit.value(zero, y)), torch.finfo(y.dtype).tiny)
        self.kept = torch.zeros(0, dtype=torch.long, device=y.device)
        self.store = self.some = atoms[:0]
        self.gram, self.right = y.new_zeros(0, 0), y.new_zeros(0)
        self.visits = self.price = 0  # looks at atoms, on the residual, and how many their inner products are worth

    def predict(self, z: Tensor) -> Tensor:
        at, inside = z.nonzero()[:, 0], z[self.kept[: len(self.some)]]
        if int(inside.count_nonzero()) == len(at):
            return inside @ self.some
        return z[at] @ self.atoms[at] if 3 * len(at) < len(z) else z @ self.atoms  # a copy costs two products

    def number(self, z: Tensor, u: Tensor, slope: Tensor, correlation: Tensor) -> tuple[float, str]:
        try:
            rows = (x.unsqueeze(0) for x in (z, u, self.y, slope, correlation))
            return float(duality_gap(self.datafit, self.penalty, *rows)), "duality gap"
        except NotImplementedError:
            worst = float(self.penalty.violation(z, correlation).max())
            return worst / max(self._steepest(), torch.finfo(z.dtype).tiny), "violation"

    def _steepest(self) -> float:
        first = self.datafit.gradient(torch.zeros_like(self.y), self.y)
        return float((self.atoms @ first).abs().max())

    def _slopes(self, like: Tensor) -> Tensor | None:
        """Of the penalty at 0, where the bound of screening knows it."""
        if type(self.penalty) in (L1, NonNegativeL1):
            return like.new_full((len(like),), self.penalty.weight)  # type: ignore[attr-defined]
        return self.penalty.each(like) if type(self.penalty) is WeightedL1 else None

    def unneeded(self, u: Tensor, slope: Tensor, correlation: Tensor, number: float) -> Tensor:
        """Atoms whose correlation stays below the slope in the whole sphere of radius sqrt(2 curvature gap) around the dual point."""
        slopes = self._slopes(correlation)
        if slopes is None or self.datafit.curvature == float("inf"):
            return torch.zeros_like(correlation, dtype=torch.bool)
        scale = 1 / max(float(self.penalty.largest(correlation)), 1.0)
        # Rounding of the products counts as part of the gap.
        gap = number * self.worth + 16 * torch.finfo(u.dtype).eps * self.worth
        radius = (2 * self.datafit.curvature * gap) ** 0.5
        facing = -correlation if type(self.penalty) is NonNegativeL1 else correlation.abs()
        return facing * scale + radius * self.norms < slopes

    def urgency(self, correlation: Tensor, screened: Tensor) -> Tensor:
        """How near an atom at 0 is to leaving it, in units of its norm; what is screened or in the working set comes last."""
        size = -correlation if type(self.penalty) is NonNegativeL1 else correlation.abs()
        slopes = self._slopes(correlation)
        size = (size if slopes is None else size - slopes) / self.norms.clamp(min=torch.finfo(size.dtype).tiny)
        return size.masked_fill(screened, -torch.inf).index_fill(0, self.kept, -torch.inf)

    def take(self, urgency: Tensor, more: int) -> None:
        """Let this many more atoms into the working set."""
        more = min(more, int((urgency > -torch.inf).sum()))
        self.kept = torch.cat([self.kept, top(urgency.unsqueeze(0), more)[0].nonzero()[:, 0]])

    def descend(
        self, z: Tensor, u: Tensor, screened: Tensor, correlation: Tensor, goal: float, passes: int
    ) -> tuple[Tensor, int]:
        """The problem on the working set, or on all that is not screened, from z with z D = u, to a violation of `goal`."""
        used, done = 0, False
        if isinstance(self.datafit, Quadratic):
            z, used, done = self._visited(z, u, screened, correlation, goal, passes)
        if done:
            return z, used
        outside = (z != 0).index_fill(0, self.kept, False)
        self.kept = torch.cat([self.kept, outside.nonzero()[:, 0]])
        self._copy()
        penalty, inside, passes = restrict(self.penalty, self.kept), z[self.kept], max(passes - used, 0)
        if isinstance(self.datafit, Quadratic):
            inside, more = _quadratic(self.gram, self.right, penalty, inside, goal, passes)
        else:
            inside, more = self._newton(self.some, penalty, inside, goal, passes)
        return torch.zeros_like(z).index_copy(0, self.kept, inside), used + more

    def _visited(
        self, z: Tensor, u: Tensor, screened: Tensor, correlation: Tensor, goal: float, passes: int
    ) -> tuple[Tensor, int, bool]:
        """Passes over atoms: never longer than inner products would have taken."""
        left = (~screened).nonzero()[:, 0]
        if len(self.y) < _TALL * len(left):
            return z, 0, False
        self.price = max(self.price, len(left) ** 2 // _LOOK)
        most = min(self.price - self.visits, passes * len(left))
        if most <= 0:
            return z, 0, False
        left = left[correlation[left].abs().argsort(descending=True, stable=True)]  # fewer enter that would leave again
        squares, penalty = self.norms[left] ** 2, restrict(self.penalty, left)
        goal *= _INSIDE  # none is outside, for which this would be too early
        inside, visits, done = descend_residual(self.atoms, left, self.y - u, squares, penalty, z[left], goal, most)
        self.visits += visits
        z = torch.zeros_like(z).index_copy(0, left, inside)
        return z, -(-visits // len(left)), done

    def _copy(self) -> None:
        """Atoms of the working set side by side, and for the quadratic their inner products; what is known is kept."""
        known, size = len(self.some), len(self.kept)
        if size > len(self.store):  # twice as many as needed: each atom is copied twice at most
            self.store = self.atoms.new_empty(min(2 * size, len(self.atoms)), self.atoms.shape[1])
            self.store[:known] = self.some
        self.some, fresh = self.store[:size], self.store[known:size]
        torch.index_select(self.atoms, 0, self.kept[known:], out=fresh)
        if isinstance(self.datafit, Quadratic):
            beside = self.some @ fresh.T
            gram = self.gram.new_empty(size, size)
            gram[:known, :known], gram[:, known:], gram[known:] = self.gram, beside, beside.T
            self.gram, self.right = gram, torch.cat([self.right, fresh @ self.y])

    def _newton(self, some: Tensor, penalty: Penalty, z: Tensor, goal: float, passes: int) -> tuple[Tensor, int]:
        """Penalised quadratic models of the datafit, and a line search on the cost."""
        used, cost = 0, self._cost(some, penalty, z)
        for _ in range(30):
            u = z @ some
            slope = some @ self.datafit.gradient(u, self.y)
            worst = float(penalty.violation(z, slope).max())
            if worst <= goal or used >= passes:
                break
            bend = self.datafit.bend(u, self.y).clamp(min=1e-8)
            model = (some * bend) @ some.T
            new, more = _quadratic(model, z @ model - slope, penalty, z, max(goal / 2, worst / 100), passes - used)
            used += more
            for halving in range(30):
                tried = z + (new - z) * 0.5**halving
                lower = self._cost(some, penalty, tried)
                if lower <= cost:
                    break
            else:
                break
            z, cost = tried, lower
        return z, used

    def _cost(self, some: Tensor, penalty: Penalty, z: Tensor) -> float:
        return float(self.datafit.value(z @ some, self.y) + penalty.value(z))


def _quadratic(
    gram: Tensor, right: Tensor, penalty: Penalty, z: Tensor, goal: float, passes: int
) -> tuple[Tensor, int]:
    found, used = descend_quadratic(gram, right[None], penalty, z[None], right.new_tensor([goal]), passes)
    return found[0], int(used)
