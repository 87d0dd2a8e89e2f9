"""ADMM: weights and mask in turn, held together by a dual variable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Keep, Pattern
from sparseworks.core.score import Score
from sparseworks.core.select import select, select_across
from sparseworks.core.solver import SOLVERS, Solver, masked
from sparseworks.core.stats import Gram, Stat, Stats
from sparseworks.core.support import Support
from sparseworks.solve.guard import keep_better, require_finite


@SOLVERS.register("admm")
@dataclass(frozen=True)
class ADMM(Solver):
    """min tr((W' - W) H (W' - W)^T) with W' on a support, by ADMM with a support that tightens over the first `ramp` steps.

    With columns scaled to unit second moment, H <- H + damp * I, and in each step
    M = support of the best scores of W' + U;  Z = M * (W' + U);  U <- U + W' - Z;  W' = (W H + rho (Z - U)) (H + rho I)^-1.
    At step t < ramp, M also keeps the best of the rest, until the density 1 - s (1 - (1 - (t + 1) / ramp)^3), s the final
    sparsity; afterwards M stays. The result is M * (W' + U). The score sees W' + U; Wanda's gives the published rule.

    Source: Boža, 2024, arXiv 2401.02938 (damp 0.1, rho 1, 20 steps, 15 of them the ramp). The released code applies the
    ramp to unstructured patterns only per row; here it holds for every pattern. Departure: rows worse than masking alone
    keep their masked weights.
    """

    damp: float = 0.1
    rho: float = 1.0
    steps: int = 20
    ramp: int = 15
    needs: ClassVar[frozenset[type[Stat]]] = frozenset({Gram})

    def __post_init__(self):
        if not 1 <= self.ramp <= self.steps or self.rho <= 0 or self.damp < 0:
            raise BudgetError(f"admm needs 1 <= ramp <= steps, rho > 0 and damp >= 0, got {self}.")

    def __call__(
        self, weight: Float[Tensor, "rows cols"], stats: Stats, score: Score, pattern: Pattern, keep: Keep | None
    ) -> tuple[Float[Tensor, "rows cols"], Support]:
        """New weight and support.

        Raises:
            MissingStatError: no Gram statistic.
            NonFiniteError: NaN or infinity in the weight.
        """
        gram = stats[Gram]
        require_finite(weight, gram.total)
        scale, h = _unit_columns(gram, self.damp)
        scale, h = scale.to(weight.device), h.to(weight.device)
        inverse = torch.linalg.inv(h + self.rho * torch.eye(len(h), dtype=h.dtype, device=h.device)).float()
        now = weight.float() * scale.float()
        pull = (now.double() @ h).float()
        dual, mask, support = torch.zeros_like(now), torch.ones_like(now, dtype=torch.bool), Support.full(weight.shape)
        for step in range(self.steps):
            if step < self.ramp:
                scores = score((now + dual) / scale.float(), stats)
                support = select(scores, pattern, keep)
                mask = _relaxed(scores, support, (1 - (step + 1) / self.ramp) ** 3)
            kept = (now + dual) * mask
            dual = dual + now - kept
            now = (pull + self.rho * (kept - dual)) @ inverse
        solved = ((now + dual) / scale.float()).to(weight.dtype)
        return keep_better(weight, masked(solved, support), masked(weight, support), gram.matrix), support


def _unit_columns(gram: Gram, damp: float) -> tuple[Float[Tensor, " cols"], Float[Tensor, "cols cols"]]:
    """Root mean squares of the inputs (dead ones 1), and the second moments with unit diagonal, damped."""
    h = gram.damped(0.0)
    scale = h.diagonal().sqrt()
    h = h / scale / scale.unsqueeze(1)
    return scale, h + damp * torch.eye(len(h), dtype=h.dtype)


def _relaxed(scores: Float[Tensor, "rows cols"], support: Support, spare: float) -> Bool[Tensor, "rows cols"]:
    """The support and the best of the rest: the share `spare` of what the support leaves out."""
    mask = support.mask().to(scores.device)
    extra = round(spare * (support.size - support.count))
    if extra == 0:
        return mask
    (more,) = select_across([scores.masked_fill(mask, torch.inf)], support.count + extra)
    return more
