"""ActivationScore: how much reading the weights of an input is worth, known before they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sparseworks.core.config import NOUNS
from sparseworks.core.registry import Registry

ACTIVATION_SCORES: Registry[type[ActivationScore]] = Registry("activation score", "sparseworks.activations")


class ActivationScore:
    """score_tj = |x_tj| f_j with a constant f_j of column j, so that a mask depends on the token alone; higher is kept."""

    registered_name: ClassVar[str]

    def factor(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, " in"] | None:
        """f, computed once from the weight; None = 1."""
        raise NotImplementedError

    def __call__(self, x: Float[Tensor, "*lead in"], weight: Float[Tensor, "out in"]) -> Float[Tensor, "*lead in"]:
        """|x_j| f_j."""
        factor = self.factor(weight)
        return x.abs() if factor is None else x.abs() * factor.to(x)


@ACTIVATION_SCORES.register("input_magnitude")
@dataclass(frozen=True)
class InputMagnitude(ActivationScore):
    """|x_j|."""

    def factor(self, weight: Float[Tensor, "out in"]) -> None:
        """1."""


@ACTIVATION_SCORES.register("input_contribution")
@dataclass(frozen=True)
class InputContribution(ActivationScore):
    """|x_j| ||W_:j||_2: the norm of what input j adds to the output.

    ||W (x - s(x))||^2 is the sum of its squares over the dropped inputs where columns are orthogonal.
    Source: Chen et al., 2025, arXiv 2505.19427; Zhang et al., 2025 (R-Sparse).
    """

    def factor(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, " in"]:
        """Norms of the columns."""
        return weight.detach().float().norm(dim=0)


NOUNS["activation_score"] = (ActivationScore, ACTIVATION_SCORES)
