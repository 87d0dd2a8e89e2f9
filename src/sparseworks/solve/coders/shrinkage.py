"""Iterative thresholding by the proximal map of any penalty."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from sparseworks.solve.coder import CODERS
from sparseworks.solve.coders.loop import ThresholdLoop
from sparseworks.solve.coders.problem import Problem
from sparseworks.solve.penalties import L0
from sparseworks.solve.penalty import Penalty

_COUNTED: Penalty = L0(0.1)


@CODERS.register("thresholding")
@dataclass(frozen=True)
class Thresholding(ThresholdLoop):
    """z <- prox_{g / L}(z + A*(y - A z) / L), L = ||A||^2: a minimum of ||y - A z||^2 / 2 + g(z), local if g is not convex; any linear map.

    Attributes:
        penalty: g.

    Source: Daubechies, Defrise and De Mol, 2004; for penalties that are not convex, Attouch, Bolte and Svaiter, 2013.
    """

    penalty: Penalty = _COUNTED

    def step(
        self, problem: Problem, y: Shaped[Tensor, "rows m"], z: Shaped[Tensor, "rows n"], r: Shaped[Tensor, "rows m"]
    ) -> Shaped[Tensor, "rows n"]:
        """A gradient step."""
        return z + problem.adjoint(r) / problem.squared_norm

    def threshold(self, problem: Problem, v: Shaped[Tensor, "rows n"], n: int) -> Shaped[Tensor, "rows n"]:
        """The proximal map."""
        del n
        return self.penalty.prox(v, 1 / problem.squared_norm)
