"""Bilinear autoencoders: latents that are quadratic forms of the input, whose decoder is the encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.codes.autoencoders.protocol import Config, Losses
from sparseworks.core.ahead import is_ahead
from sparseworks.core.errors import NonFiniteError, ShapeError

if TYPE_CHECKING:
    from sparseworks.codes.autoencoders.latent import Moment
    from sparseworks.codes.autoencoders.method import AutoencoderMethod
    from sparseworks.codes.autoencoders.stream import Batch

_TILE = 1024


class BilinearAutoencoder(nn.Module):
    """f_k = (l_k^T x)(r_k^T x) of normalised x; xx^T is reconstructed by sum_k f_k l_k r_k^T.

    The loss ||xx^T - X^||^2 = 1 - 2 sum f_k^2 + f^T [(L L^T) o (R R^T)] f is taken tile by tile, without a matrix of d^2.

    Args:
        method: with the rule `bilinear`.
        d_in: features.
        width: latents.
        seed: of the orthogonal first factors.

    Source: Dooms and Gauderis, 2025, arXiv 2510.16820.
    """

    scale: Tensor

    def __init__(self, method: AutoencoderMethod, d_in: int, width: int, *, seed: int = 0) -> None:
        super().__init__()
        if min(d_in, width) < 1:
            raise ShapeError(f"An autoencoder needs sizes of at least 1, got {d_in} in, {width} latents.")
        self.method, self.rule, self.width = method, method.latents, width
        generator = torch.Generator().manual_seed(seed)
        self.left = nn.Parameter(_orthogonal(width, d_in, generator))
        self.right = nn.Parameter(_orthogonal(width, d_in, generator))
        mixing = self.rule.mixed  # type: ignore[attr-defined]
        self.mix = nn.Parameter(_orthogonal(min(2 * d_in, width), width, generator)) if mixing else None
        self.register_buffer("scale", torch.tensor(1.0, dtype=torch.float64))
        self.labels: dict[str, str | int] = {}

    @property
    def cfg(self) -> Config:
        """Sizes and origin."""
        d = self.left.shape[1]
        return Config(d, self.width, d, self.method.name, **self.labels)  # type: ignore[arg-type]

    def latents(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "rows width"]:
        """f of normalised inputs, dense: no rule cuts it.

        Raises:
            ShapeError, NonFiniteError: inputs that do not fit, or are not finite.
        """
        if not x.dim() or x.shape[-1] != self.left.shape[1]:
            raise ShapeError(f"Inputs of this autoencoder end in {self.left.shape[1]}, got {tuple(x.shape)}.")
        if not is_ahead() and not bool(torch.isfinite(x).all()):
            raise NonFiniteError("Activations hold NaN or infinity: check the model and the site.")
        x = F.normalize(x.reshape(-1, x.shape[-1]).to(self.left.dtype), dim=1)
        return (x @ self.left.T) * (x @ self.right.T)

    def reconstruction(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "rows d d"]:
        """X^ in full, d^2 numbers a row, for looking at; the mixed variant's with g = D^T D f in place of f."""
        f = self.latents(x)
        g = f if self.mix is None else (f @ self.mix.T) @ self.mix
        return torch.einsum("bk,ki,kj->bij", g, self.left, self.right)

    def errors(self, f: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
        """||xx^T - X^||^2 (or its mean over all prefixes of the latents) of each row."""
        if self.mix is not None:
            h = f @ self.mix.T
            return 1 - 2 * h.square().sum(1) + self._quadratic(h @ self.mix, None)
        weight = torch.arange(self.width, 0, -1, device=f.device, dtype=f.dtype) / self.width if self._ordered else None
        linear = f.square() if weight is None else f.square() * weight
        return 1 - 2 * linear.sum(1) + self._quadratic(f, weight)

    @property
    def _ordered(self) -> bool:
        return self.rule.ordered  # type: ignore[attr-defined]

    def _quadratic(self, f: Tensor, weight: Tensor | None) -> Tensor:
        """f^T (w o K) f, K = (L L^T) o (R R^T), w_ij = min(weight_i, weight_j): the share of prefixes that hold both."""
        total = f.new_zeros(len(f))
        for first in range(0, self.width, _TILE):
            rows = slice(first, first + _TILE)
            kernel = (self.left[rows] @ self.left.T) * (self.right[rows] @ self.right.T)
            if weight is not None:
                kernel = kernel * torch.minimum(weight[rows].unsqueeze(1), weight)
            total = total + ((f[:, rows] @ kernel) * f).sum(1)
        return total

    def prepare(self, sample: Batch) -> None:
        """Nothing: inputs are normalised one by one."""

    def loss(self, batch: Batch, moment: Moment) -> Losses:
        """Mean error + alpha mean_k of the Hoyer density; the error is a share of ||xx^T||^2 = 1."""
        f = self.latents(batch.x)
        error = self.errors(f).mean()
        rule: Any = self.rule
        risen = min(1.0, moment.progress / rule.warmup) if rule.warmup else 1.0
        total = error + risen * rule.alpha * hoyer_density(f).mean()
        return Losses(total, error.detach(), None, batch.x)  # type: ignore[arg-type]

    def project_gradients(self) -> None:
        """Nothing: factors are free."""

    def constrain(self) -> None:
        """Nothing: factors are free."""

    def fold(self) -> BilinearAutoencoder:
        """Nothing to fold; itself."""
        return self

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "rows width"]:
        """The latents."""
        return self.latents(x)


def hoyer_density(f: Float[Tensor, "n width"]) -> Float[Tensor, " width"]:
    """(||f_k||_1 / ||f_k||_2 - 1) / (sqrt(n) - 1) over the batch: 0 for a latent that one token uses, 1 for one that all use alike."""
    n = max(len(f), 2)
    ratio = f.abs().sum(0) / f.square().sum(0).clamp(min=torch.finfo(f.dtype).tiny).sqrt()
    return (ratio - 1) / (n**0.5 - 1)


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns where there are more rows, orthonormal rows otherwise: sum f^2 begins far below 1."""
    return nn.init.orthogonal_(torch.empty(rows, columns), generator=generator)
