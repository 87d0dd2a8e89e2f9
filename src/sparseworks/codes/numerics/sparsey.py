"""An associative memory that stores a pattern in one trial, as a sparse code that lies near those of similar patterns."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.errors import BudgetError, ShapeError


@dataclass
class Sparsey:
    """Q winner-take-all modules of K binary units over binary inputs; codes are one winner a module.

    U_i = sum_j x_j w_ij / |x|, familiarity G = mean_q max_{i in q} U_i, expansivity
    eta = 1 + chi K ((G - G_0)_+ / (1 - G_0))^gamma, psi_i = 1 + (eta - 1) / (1 + s_1 exp(-s_2 (U_i - s_3)))^s_4,
    and a winner is drawn in every module with probability psi_i / sum psi. A familiar input (G = 1) finds its code again,
    a new one (G <= G_0) a random one; in between, codes overlap as much as inputs do.

    Attributes:
        inputs: binary inputs.
        modules, units: Q and K.
        floor: G_0.
        chi, gamma, sigmoid: constants of the expansivity, and (s_1, s_2, s_3, s_4).
        seed: of the draws.

    Source: Rinkus, 2014 and 2017 (Sparsey).
    """

    inputs: int
    modules: int = 24
    units: int = 8
    floor: float = 0.1
    chi: float = 100.0
    gamma: float = 2.0
    sigmoid: tuple[float, float, float, float] = (300.0, 12.0, 0.1, 5.0)
    seed: int = 0
    weights: Bool[Tensor, "modules units inputs"] = field(init=False, repr=False)

    def __post_init__(self):
        if min(self.inputs, self.modules, self.units) < 1 or not 0 <= self.floor < 1:
            raise BudgetError(
                f"Sparsey needs inputs, modules and units >= 1 and a floor in [0, 1), got {self.inputs}, {self.modules}, {self.units}, {self.floor}."
            )
        self.weights = torch.zeros(self.modules, self.units, self.inputs, dtype=torch.bool)
        self._generator = torch.Generator().manual_seed(self.seed)

    def familiarity(self, pattern: Bool[Tensor, " inputs"]) -> float:
        """G in [0, 1]: how well the best unit of every module knows the pattern."""
        return float(self._sums(pattern).amax(1).mean())

    def code(self, pattern: Bool[Tensor, " inputs"], learn: bool = False) -> Int[Tensor, " modules"]:
        """The winner of every module; with `learn` its weights from the active inputs are set, once and for all.

        Raises:
            ShapeError: not a binary vector of that many inputs, or none active.
        """
        sums = self._sums(pattern)
        winners = torch.multinomial(self._chances(sums), 1, generator=self._generator)[:, 0]
        if learn:
            self.weights[torch.arange(self.modules), winners] |= pattern
        return winners

    def store(self, patterns: Bool[Tensor, "patterns inputs"]) -> Int[Tensor, "patterns modules"]:
        """Codes of patterns, each learnt in one trial, in their order."""
        return torch.stack([self.code(p, learn=True) for p in patterns])

    def recall(self, pattern: Bool[Tensor, " inputs"]) -> Int[Tensor, " modules"]:
        """The best known winner of every module, without a draw."""
        return self._sums(pattern).argmax(1)

    def _sums(self, pattern: Tensor) -> Float[Tensor, "modules units"]:
        if pattern.dtype is not torch.bool or pattern.shape != (self.inputs,) or not bool(pattern.any()):
            raise ShapeError(
                f"A pattern is bool ({self.inputs},) with an active input, got {pattern.dtype} {tuple(pattern.shape)}."
            )
        return self.weights[..., pattern].float().mean(-1)

    def _chances(self, sums: Tensor) -> Float[Tensor, "modules units"]:
        known = float(sums.amax(1).mean())
        eta = 1 + self.chi * self.units * (max(known - self.floor, 0) / (1 - self.floor)) ** self.gamma
        s1, s2, s3, s4 = self.sigmoid
        return 1 + (eta - 1) / (1 + s1 * torch.exp(-s2 * (sums - s3))) ** s4
