"""The scaling law of models with sparse activations, and the sparsity of least loss for a fixed count of activated parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import CalibrationError, NonFiniteError, ShapeError
from sparseworks.evaluate.laws import Model, levenberg

NAMES = ("e", "b", "c", "beta", "alpha")


@dataclass(frozen=True)
class ActivationLaw:
    """L(S, N) = e + (b + c exp(beta / (1 - S))) N^-alpha; S share of activations that are zero, N all parameters.

    Source: Wang et al., 2024, arXiv 2407.10969 (Q-Sparse).

    Attributes:
        error: mean |log L - log fitted| of the runs it was fitted to.
    """

    e: float
    b: float
    c: float
    beta: float
    alpha: float
    error: float = 0.0

    def __call__(self, sparsity: float, parameters: float) -> float:
        """The loss of a run."""
        return self.e + self.capacity(sparsity) * parameters**-self.alpha

    def capacity(self, sparsity: float) -> float:
        """b + c exp(beta / (1 - S))."""
        return self.b + self.c * math.exp(self.beta / (1 - sparsity))

    def best_sparsity(self, grid: int = 1000) -> float:
        """argmin_S of the loss with N (1 - S) activated parameters held fixed: of A(S) (1 - S)^alpha, whatever their number."""
        shares = [i / grid for i in range(int(0.98 * grid) + 1)]
        return min(shares, key=lambda s: self.alpha * math.log(1 - s) + _log_capacity(self, s))


def fit_activation_law(
    sparsity: Sequence[float],
    parameters: Sequence[float],
    loss: Sequence[float],
    *,
    starts: int = 128,
    seed: int = 0,
) -> ActivationLaw:
    """Fit by robust regression of log loss, as `fit_law` does: Huber at 1e-3, Levenberg-Marquardt from many starts, the best of them.

    Raises:
        ShapeError: sequences of different lengths.
        CalibrationError: fewer than six runs, or a quantity that does not vary.
        NonFiniteError: a loss, size or sparsity out of range.
    """
    s, n, y = (torch.as_tensor(v, dtype=torch.float64).flatten() for v in (sparsity, parameters, loss))
    _check(s, n, y)
    centre = n.log().mean()
    u = 1 / (1 - s) - 1
    g = torch.Generator().manual_seed(seed)
    draw = torch.rand(starts, 5, generator=g, dtype=torch.float64)
    theta = y.min().log() - 4 * draw
    theta[:, 3:] = (0.05 + 0.95 * draw[:, 3:]).log()
    fits, losses = levenberg(_model(u, n.log() - centre), y.log(), theta, torch.ones(starts, len(y), dtype=y.dtype))
    best = fits[losses.argmin()]
    e, b, c, beta, alpha = (float(v) for v in best.exp())
    raised = math.exp(alpha * float(centre))
    law = ActivationLaw(e, b * raised, c * raised * math.exp(-beta), beta, alpha)
    error = sum(abs(math.log(law(a, b) / c)) for a, b, c in zip(s.tolist(), n.tolist(), y.tolist(), strict=True)) / len(
        y
    )
    return ActivationLaw(law.e, law.b, law.c, law.beta, law.alpha, error)


def _model(u: Float[Tensor, " runs"], n: Float[Tensor, " runs"]) -> Model:
    """Three positive terms with logarithms of all coefficients as parameters, u = 1 / (1 - S) - 1, n the centred log of N."""

    def predicted(theta: Tensor) -> tuple[Tensor, Tensor]:
        e, b, c, beta, alpha = theta.unsqueeze(2).unbind(dim=1)
        size = -alpha.exp() * n
        floor, flat, sparse = e.exp().expand(-1, len(n)), (b + size).exp(), (c + beta.exp() * u + size).exp()
        total = floor + flat + sparse
        columns = floor, flat, sparse, sparse * u * beta.exp(), (flat + sparse) * size
        return total.log(), torch.stack(columns, dim=2) / total.unsqueeze(2)

    return predicted


def _log_capacity(law: ActivationLaw, s: float) -> float:
    """log A(S) without overflow."""
    high = math.log(max(law.c, 1e-300)) + law.beta / (1 - s)
    low = math.log(max(law.b, 1e-300))
    return max(high, low) + math.log1p(math.exp(-abs(high - low)))


def _check(s: Tensor, n: Tensor, y: Tensor) -> None:
    if len({len(s), len(n), len(y)}) > 1:
        raise ShapeError(
            f"A law is fitted to runs: one sparsity, size and loss each, got {len(s)}, {len(n)}, {len(y)}."
        )
    if not bool(((s >= 0) & (s < 1)).all()) or not all(bool((v.isfinite() & (v > 0)).all()) for v in (n, y)):
        raise NonFiniteError("Runs need a sparsity in [0, 1), and positive finite sizes and losses.")
    flat = [name for name, v in (("sparsity", s), ("size", n)) if len(set(v.tolist())) < 2]
    if len(y) < len(NAMES) + 1 or flat:
        reason = f"{flat[0]} is the same in all runs" if flat else f"there are {len(y)} runs"
        raise CalibrationError(f"The law has {len(NAMES)} coefficients, and {reason}: vary sparsity and size.")
