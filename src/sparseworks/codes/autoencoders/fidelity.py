"""Metrics of reconstructions beside the variance they explain: direction, size, shrinkage (the core of SAEBench's evaluation)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.autoencoders.metrics import METRICS, Metric
from sparseworks.core.codes import Codes
from sparseworks.core.errors import CalibrationError


class _Mean(Metric):
    """Sums over tokens of one number or more."""

    def __init__(self) -> None:
        self.rows, self.sums = 0, torch.zeros(2, dtype=torch.float64)

    def add(self, y: Float[Tensor, "rows d"], rebuilt: Float[Tensor, "rows d"], codes: Codes) -> None:
        """Count a batch."""
        self.rows += len(y)
        parts = self.parts(y.detach().double(), rebuilt.detach().double(), codes)
        self.sums += torch.stack([part.sum().cpu() for part in parts])

    def parts(self, y: Tensor, rebuilt: Tensor, codes: Codes) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of each token."""
        raise NotImplementedError

    def value(self) -> Float[Tensor, ""]:
        """Numerators over denominators."""
        if not self.rows:
            raise CalibrationError("A metric of no tokens is not known; give at least one.")
        return self.sums[0] / self.sums[1]


@METRICS.register("cosine")
class Cosine(_Mean):
    """Mean over tokens of <y, y^> / (||y|| ||y^||); 0 where one of them is 0."""

    def parts(self, y: Tensor, rebuilt: Tensor, codes: Codes) -> tuple[Tensor, Tensor]:
        """The cosine, 1."""
        cosine = torch.nn.functional.cosine_similarity(y, rebuilt, dim=1, eps=1e-30)
        return cosine, torch.ones_like(cosine)


@METRICS.register("norm_ratio")
class NormRatio(_Mean):
    """Mean over tokens of ||y^|| / ||y||, tokens of norm 0 left out."""

    def parts(self, y: Tensor, rebuilt: Tensor, codes: Codes) -> tuple[Tensor, Tensor]:
        """The ratio, 1."""
        norm = y.norm(dim=1)
        return torch.where(norm > 0, rebuilt.norm(dim=1) / norm.clamp(min=1e-300), 0.0), (norm > 0).double()


@METRICS.register("reconstruction_bias")
class ReconstructionBias(_Mean):
    """gamma = E ||y^||^2 / E <y^, y>: below 1 where values are shrunk, as under an l1 penalty.

    Source: Rajamanoharan et al., 2024, arXiv 2404.16014 (relative reconstruction bias).
    """

    def parts(self, y: Tensor, rebuilt: Tensor, codes: Codes) -> tuple[Tensor, Tensor]:
        """||y^||^2, <y^, y>."""
        return rebuilt.square().sum(1), (rebuilt * y).sum(1)


@METRICS.register("l1")
class L1(_Mean):
    """Mean over tokens of the sum of |z_i|."""

    def parts(self, y: Tensor, rebuilt: Tensor, codes: Codes) -> tuple[Tensor, Tensor]:
        """The sum, 1."""
        size = codes.values.detach().double().abs().sum(1)
        return size, torch.ones_like(size)
