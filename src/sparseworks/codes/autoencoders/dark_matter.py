"""What an autoencoder leaves over: how much of its error is linear in the activations, and whether better codes would have helped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.autoencoders.stream import Batch
from sparseworks.core.budget import Count
from sparseworks.core.codes import Codes
from sparseworks.core.errors import CalibrationError, ShapeError
from sparseworks.solve.coders.matching import GradientPursuit

_RIDGE = 1e-10  # times the mean of the Gram's diagonal: directions that never vary


@dataclass(frozen=True)
class ErrorSplit:
    """Parts of the error e = y - y^, all in shares; on activations that nothing was fitted to.

    Attributes:
        error: of the variance of y, unexplained: ||e||^2 / ||y - mean||^2.
        linear, nonlinear: of the variance of y, the parts of `error` that e ~ M x + c explains and leaves (the linear one is below 0
            where the fit does not carry over).
        r2_error: of the variance of e (of all features together, where the authors' code averages over features), what M x + c explains; 0 where
            there is no error.
        r2_norm: of the variance of ||e||^2, what w^T x + c explains; 0 where it does not vary.
        pursuit: of the variance of y, unexplained by gradient pursuit with the decoder's atoms at each token's own L0.
        tokens: how many these hold for.
    """

    error: float
    linear: float
    nonlinear: float
    r2_error: float
    r2_norm: float
    pursuit: float
    tokens: int


class Regression:
    """y ~ M x + c by least squares, gathered batch by batch in float64: `add`, then `coefficients`.

    Args:
        inputs, outputs: lengths of x and y.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.rows = 0
        self.gram = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self.cross = torch.zeros(inputs + 1, outputs, dtype=torch.float64)
        self._shift: Tensor | None = None

    def add(self, x: Float[Tensor, "rows inputs"], y: Float[Tensor, "rows outputs"]) -> None:
        """Count a batch.

        Raises:
            ShapeError: other lengths.
        """
        if len(x) != len(y) or (x.shape[1] + 1, y.shape[1]) != self.cross.shape:
            raise ShapeError(f"A regression of {tuple(self.cross.shape)} got {tuple(x.shape)} and {tuple(y.shape)}.")
        wide = self._extended(x)
        self.gram += wide.T @ wide
        self.cross += wide.T @ y.detach().double().cpu()
        self.rows += len(x)

    def coefficients(self) -> Float[Tensor, "inputs+1 outputs"]:
        """[M^T; c], for inputs less the mean of the first batch.

        Raises:
            CalibrationError: not more rows than inputs, so that any y would be explained.
        """
        if self.rows <= len(self.gram):
            raise CalibrationError(
                f"{self.rows} tokens do not determine a map of {len(self.gram) - 1} features: fit on more of them."
            )
        ridge = _RIDGE * self.gram.diagonal().mean().clamp(min=1e-300)
        lower = torch.linalg.cholesky(self.gram + ridge * torch.eye(len(self.gram), dtype=torch.float64))
        return torch.cholesky_solve(self.cross, lower)

    def predict(self, x: Float[Tensor, "rows inputs"], coefficients: Tensor) -> Float[Tensor, "rows outputs"]:
        """M x + c, float64."""
        return self._extended(x) @ coefficients

    def _extended(self, x: Tensor) -> Tensor:
        x = x.detach().double().cpu()
        if self._shift is None:  # a large mean would cost digits
            self._shift = x.mean(0)
        return torch.cat([x - self._shift, x.new_ones(len(x), 1)], dim=1)


@torch.no_grad()
def dark_matter(
    sae: Any,
    fit: Iterable[Batch],
    held: Iterable[Batch],
    *,
    inputs: Callable[[Batch], Float[Tensor, "rows inputs"]] | None = None,
) -> ErrorSplit:
    """Split the error of an autoencoder: e ~ M x + c, ||e||^2 ~ w^T x + c, and what pursuit with its own atoms leaves.

    Args:
        sae: an autoencoder.
        fit: batches that M and w are fitted to, more tokens than features.
        held: other batches, which everything is measured on.
        inputs: what e is predicted from; None: x. The reconstructions of earlier components are the second reduction of the source.

    Raises:
        CalibrationError: too few tokens to fit, or none to measure.

    Source: Engels et al., 2024, arXiv 2410.14670.
    """
    given = inputs or (lambda batch: batch.x)
    error_fit, norm_fit = _fitted(sae, fit, given)
    of_error, of_norm = error_fit.coefficients(), norm_fit.coefficients()
    whole, left, norm, norm_left, error, better = (_Spread() for _ in range(6))
    for batch in held:
        x, (y, e, codes) = given(batch), _errors(sae, batch)
        size = e.square().sum(1, keepdim=True)
        whole.add(y)
        error.add(e)
        left.add(e - error_fit.predict(x, of_error))
        norm.add(size)
        norm_left.add(size - norm_fit.predict(x, of_norm))
        better.add(y - _rebuilt(sae, pursued(sae, batch, codes)))
    if not whole.rows:
        raise CalibrationError("There are no tokens to measure the error on; give at least one batch.")
    total = whole.about_mean() or 1.0
    none = error.energy <= (10 * torch.finfo(torch.float32).eps) ** 2 * whole.energy  # rounding is no error
    shares = [0.0 if none else s.energy / total for s in (error, left, better)]
    return ErrorSplit(
        error=shares[0],
        linear=shares[0] - shares[1],
        nonlinear=shares[1],
        r2_error=0.0 if none else _explained(left.energy, error.about_mean()),
        r2_norm=0.0 if none else _explained(norm_left.energy, norm.about_mean()),
        pursuit=shares[2],
        tokens=whole.rows,
    )


@torch.no_grad()
def pursued(sae: Any, batch: Batch, codes: Codes) -> Codes:
    """Codes of the same targets by gradient pursuit over the decoder's atoms, with values not below 0 and as many atoms a token as in `codes`.

    r = y - b - z W; the atom with the largest <r, d_i> joins; z = (z + s g)_+ with g = <r, d> on the support and s the exact step.
    """
    y = _target(sae, batch).to(sae.W_dec.dtype) - sae.b_dec
    counts = (codes.values.abs() > 0).sum(1)  # a latent that was kept at 0 is not active
    z = y.new_zeros(len(y), codes.width)
    for count in counts.unique().tolist():
        rows = (counts == count).nonzero().squeeze(1)
        if count:
            coder = GradientPursuit(Count(count), rounds=count, nonnegative=True)
            z[rows] = coder(sae.W_dec.detach(), y[rows].contiguous()).z
    return Codes.from_dense(z)


def _fitted(sae: Any, batches: Iterable[Batch], given: Callable[[Batch], Tensor]) -> tuple[Regression, Regression]:
    found: tuple[Regression, Regression] | None = None
    for batch in batches:
        x, (_, e, _) = given(batch), _errors(sae, batch)
        if found is None:
            found = Regression(x.shape[1], e.shape[1]), Regression(x.shape[1], 1)
        found[0].add(x, e)
        found[1].add(x, e.square().sum(1, keepdim=True))
    if found is None:
        raise CalibrationError("There are no tokens to fit to; give at least one batch.")
    return found


def _errors(sae: Any, batch: Batch) -> tuple[Tensor, Tensor, Codes]:
    """Targets, errors (both float64) and codes."""
    codes = sae.encode(batch.x)
    y = _target(sae, batch).double().cpu()
    return y, y - _rebuilt(sae, codes), codes


def _rebuilt(sae: Any, codes: Codes) -> Tensor:
    return sae.decode(codes).double().cpu()


def _target(sae: Any, batch: Batch) -> Tensor:
    return sae.goal(batch) if hasattr(sae, "goal") else batch.x


class _Spread:
    """Sums of rows and of their squares, about the first batch's mean."""

    def __init__(self) -> None:
        self.rows, self.energy, self._moved = 0, 0.0, 0.0
        self._shift: Tensor | None = None
        self._sum: Tensor | float = 0.0

    def add(self, v: Float[Tensor, "rows d"]) -> None:
        if self._shift is None:
            self._shift = v.mean(0)
        self.energy += float(v.square().sum())
        self._moved += float((v - self._shift).square().sum())
        self._sum = self._sum + (v - self._shift).sum(0)
        self.rows += len(v)

    def about_mean(self) -> float:
        assert isinstance(self._sum, Tensor)
        return max(self._moved - float(self._sum.square().sum()) / self.rows, 0.0)


def _explained(left: float, spread: float) -> float:
    return 1 - left / spread if spread > 0 else 0.0
