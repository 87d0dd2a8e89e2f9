"""The orthonormal discrete cosine transform."""

from __future__ import annotations

from math import pi, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.linear import MAPS, LinearMap


@MAPS.register("cosine")
class Cosine(LinearMap):
    """Codes are coefficients of the orthonormal DCT-II along every axis, `forward` synthesises: u = C^T z, C^T C = I.

    Attributes:
        domain, codomain: the shape of the signals.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"):
        self.domain = self.codomain = tuple(shape)
        self.dtype, self.device = dtype, torch.device(device)

    def forward(self, z: Float[Tensor, "*batch_and_domain"]) -> Float[Tensor, "*batch_and_codomain"]:
        """u_n = sum_k c_k z_k cos(pi (2 n + 1) k / (2 N)), c_0 = sqrt(1 / N), else sqrt(2 / N)."""
        for axis in range(-len(self.domain), 0):
            z = _synthesis(z.transpose(axis, -1)).transpose(axis, -1)
        return z

    def adjoint(self, u: Float[Tensor, "*batch_and_codomain"]) -> Float[Tensor, "*batch_and_domain"]:
        """z_k = c_k sum_n u_n cos(pi (2 n + 1) k / (2 N))."""
        for axis in range(-len(self.domain), 0):
            u = _analysis(u.transpose(axis, -1)).transpose(axis, -1)
        return u

    def squared_norm(self, rounds: int = 100, tolerance: float = 1e-6, seed: int = 0) -> float:
        """1."""
        del rounds, tolerance, seed
        return 1.0


def _analysis(x: Tensor) -> Tensor:
    # Even samples, then odd ones backwards: the DCT-II is the real part of this sequence's turned DFT (Makhoul, 1980).
    n = x.shape[-1]
    folded = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)
    spectrum = (torch.fft.fft(folded) * _turn(x, n)).real * sqrt(2 / n)
    return torch.cat([spectrum[..., :1] / sqrt(2), spectrum[..., 1:]], dim=-1)


def _synthesis(z: Tensor) -> Tensor:
    n = z.shape[-1]
    scaled = torch.cat([z[..., :1] * sqrt(2), z[..., 1:]], dim=-1) * sqrt(n / 2)
    mirrored = torch.cat([torch.zeros_like(scaled[..., :1]), scaled[..., 1:].flip(-1)], dim=-1)
    folded = torch.fft.ifft(torch.complex(scaled, -mirrored) * _turn(z, n).conj()).real
    half = (n + 1) // 2
    x = torch.empty_like(folded)
    x[..., ::2], x[..., 1::2] = folded[..., :half], folded[..., half:].flip(-1)
    return x


def _turn(x: Tensor, n: int) -> Tensor:
    angle = -pi / (2 * n) * torch.arange(n, dtype=x.dtype, device=x.device)
    return torch.polar(torch.ones_like(angle), angle)
