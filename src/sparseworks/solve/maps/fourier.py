"""Parseval frames of the Fourier transform for real signals: whole, and short-time."""

from __future__ import annotations

from math import ceil, sqrt

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.solve.linear import MAPS, LinearMap


@MAPS.register("fourier")
class Fourier(LinearMap):
    """Codes are Fourier coefficients of real signals on a grid `redundancy` times as fine; `forward` synthesises.

    With M = redundancy * N and w = 1 for the first (and, for even M, last) of the M // 2 + 1 coefficients, sqrt(2) for the others:
    z_k = w_k / sqrt(M) sum_n u_n exp(-2 pi i k n / M). A coefficient stands for a conjugate pair, ||z|| = ||u||, and A A* = I.

    Attributes:
        domain: (M // 2 + 1,), complex.
        codomain: (N,), real.

    Raises:
        ShapeError: no samples, or a redundancy below 1.
    """

    def __init__(
        self, size: int, redundancy: int = 2, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ):
        if size < 1 or redundancy < 1:
            raise ShapeError(f"A Fourier frame needs samples and a redundancy of 1 or more, got {size}, {redundancy}.")
        self.points = size * redundancy
        self.domain, self.codomain, self.output_dtype = (self.points // 2 + 1,), (size,), dtype
        self.dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
        self.device = torch.device(device)
        self._weight = torch.full(self.domain, sqrt(2 / self.points), dtype=dtype, device=device)
        self._weight[0] = sqrt(1 / self.points)
        if self.points % 2 == 0:
            self._weight[-1] = sqrt(1 / self.points)

    def forward(self, z: Complex[Tensor, "*batch bins"]) -> Float[Tensor, "*batch size"]:
        """Re sum_k w_k / sqrt(M) z_k exp(2 pi i k n / M)."""
        # irfft counts all but the first and last coefficient twice, and divides by M.
        lone = self._weight == self._weight[0]
        spectrum = z * (self._weight * self.points * torch.where(lone, 1.0, 0.5))
        return torch.fft.irfft(spectrum, n=self.points)[..., : self.codomain[0]]

    def adjoint(self, u: Float[Tensor, "*batch size"]) -> Complex[Tensor, "*batch bins"]:
        """The coefficients."""
        return torch.fft.rfft(u, n=self.points) * self._weight

    def squared_norm(self, rounds: int = 100, tolerance: float = 1e-6, seed: int = 0) -> float:
        """1."""
        del rounds, tolerance, seed
        return 1.0


@MAPS.register("short_time_fourier")
class ShortTime(LinearMap):
    """Codes are coefficients of windowed frames of a real signal; `forward` synthesises, A A* = I for any window and hop.

    The window (Hann unless given) is divided by the root of the sum of its shifted squares, sample by sample; frames reach over both ends.

    Attributes:
        domain: (frames, redundancy * len(window) // 2 + 1), complex.
        codomain: (size,), real.

    Raises:
        ShapeError: a hop that leaves samples without a window.
    """

    def __init__(
        self, size: int, window: int | Float[Tensor, " w"] = 1024, hop: int = 256, redundancy: int = 1,
        dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    ):  # fmt: skip
        shape = torch.hann_window(window, dtype=dtype) if isinstance(window, int) else window.to(dtype)
        shape = shape.to(device)
        width = len(shape)
        if not 0 < hop <= width or size < 1:
            raise ShapeError(f"A hop of {hop} with windows of {width} over {size} samples leaves some unseen.")
        self._lead, frames = width - hop, ceil((size + width - hop) / hop)
        self._whole, self._hop, self._width = (frames - 1) * hop + width, hop, width
        self.inner = Fourier(width, redundancy, dtype, device)
        self.domain, self.codomain = (frames, *self.inner.domain), (size,)
        self.dtype, self.output_dtype, self.device = self.inner.dtype, dtype, self.inner.device
        energy = self._add(shape.square().expand(frames, width))[self._lead : self._lead + size]
        if bool((energy <= 0).any()):
            raise ShapeError(f"A hop of {hop} leaves samples where every window is 0; take a smaller one.")
        self._window, self._scale = shape, energy.rsqrt()

    def forward(self, z: Complex[Tensor, "*batch frames bins"]) -> Float[Tensor, "*batch size"]:
        """Overlap-add of the windowed synthesised frames."""
        whole = self._add(self.inner.forward(z) * self._window)
        return whole[..., self._lead : self._lead + self.codomain[0]] * self._scale

    def adjoint(self, u: Float[Tensor, "*batch size"]) -> Complex[Tensor, "*batch frames bins"]:
        """Coefficients of every windowed frame."""
        after = self._whole - self._lead - self.codomain[0]
        padded = torch.nn.functional.pad(u * self._scale, (self._lead, after))
        return self.inner.adjoint(padded.unfold(-1, self._width, self._hop) * self._window)

    def squared_norm(self, rounds: int = 100, tolerance: float = 1e-6, seed: int = 0) -> float:
        """1."""
        return self.inner.squared_norm(rounds, tolerance, seed)

    def _add(self, frames: Tensor) -> Tensor:
        at = torch.arange(frames.shape[-2], device=frames.device).unsqueeze(1) * self._hop
        at = (at + torch.arange(self._width, device=frames.device)).flatten()
        total = frames.new_zeros(*frames.shape[:-2], self._whole)
        return total.index_add(-1, at, frames.flatten(-2))
