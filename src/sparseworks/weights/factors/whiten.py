"""The calibration metric: what is close to a weight where its inputs lie, as plain distance of another matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.stats import Gram
from sparseworks.solve.cholesky import inverse_factor


@dataclass(frozen=True)
class Whitening:
    """E|(W - V) x|^2 = |(W - V) L|^2 with L L^T = H = E[x x^T]: fit W L by any plain method, and take L off its right factor.

    Attributes:
        inverse: L^-1, upper triangular.

    Source: Wang et al., 2024, arXiv 2403.07378 (SVD-LLM).
    """

    inverse: Float[Tensor, "cols cols"]

    @classmethod
    def of(cls, gram: Gram, damp: float = 1e-6) -> Whitening:
        """From second moments, with `damp` of the mean diagonal added so that L exists.

        Raises:
            CalibrationError: no data, or moments that are not positive definite.
        """
        return cls(inverse_factor(gram, damp))

    def into(self, weight: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
        """W L, in float64."""
        inverse = self.inverse.to(weight.device)
        return torch.linalg.solve_triangular(inverse, weight.double(), upper=True, left=False)

    def back(self, factor: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
        """F L^-1, in float64."""
        return factor.double() @ self.inverse.to(factor.device)
