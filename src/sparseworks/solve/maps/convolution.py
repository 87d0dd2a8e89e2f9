"""Convolution with a given kernel: blur, filters."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.solve.linear import MAPS, LinearMap


@MAPS.register("convolution")
class Convolution(LinearMap):
    """u[i] = sum_j k[j] z[i - j + c], c the kernel's middle; domain = codomain = `shape`, real.

    Attributes:
        kernel: k, with as many axes as the shape.
        circular: indices wrap around; else z is 0 outside.

    Raises:
        ShapeError: kernel and shape differ in their number of axes, or the kernel is the larger one.
    """

    def __init__(self, kernel: Float[Tensor, "*taps"], shape: tuple[int, ...], circular: bool = True):
        if kernel.dim() != len(shape) or any(k > n for k, n in zip(kernel.shape, shape, strict=False)):
            raise ShapeError(f"A kernel of shape {tuple(kernel.shape)} does not fit into {shape}.")
        self.kernel, self.circular, self.domain, self.codomain = kernel, circular, tuple(shape), tuple(shape)
        self.dtype, self.device = kernel.dtype, kernel.device
        self._axes = tuple(range(-len(shape), 0))
        self._size = self.domain if circular else tuple(n + k - 1 for n, k in zip(shape, kernel.shape, strict=True))
        padded = torch.zeros(self._size, dtype=kernel.dtype, device=kernel.device)
        padded[tuple(slice(k) for k in kernel.shape)] = kernel
        centred = padded.roll([-(k // 2) for k in kernel.shape], self._axes)
        self._response = torch.fft.rfftn(centred, dim=self._axes)

    def forward(self, z: Shaped[Tensor, "*batch_and_domain"]) -> Shaped[Tensor, "*batch_and_codomain"]:
        """k * z, by FFT."""
        return self._apply(z, self._response)

    def adjoint(self, u: Shaped[Tensor, "*batch_and_codomain"]) -> Shaped[Tensor, "*batch_and_domain"]:
        """Correlation of u with k."""
        return self._apply(u, self._response.conj())

    def _apply(self, x: Tensor, response: Tensor) -> Tensor:
        spectrum = torch.fft.rfftn(x, s=self._size, dim=self._axes) * response
        whole = torch.fft.irfftn(spectrum, s=self._size, dim=self._axes)
        return whole[(..., *(slice(n) for n in self.domain))]
