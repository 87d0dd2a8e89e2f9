"""The scaling law of sparse models: loss from sparsity, non-zero parameters and data, fitted robustly, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import CalibrationError, NonFiniteError, ShapeError

NAMES = ("a_s", "b_s", "c_s", "b_n", "a_d", "b_d", "c")
_STEPS, _DELTA = 150, 1e-3

Model = Callable[[Tensor], tuple[Tensor, Tensor]]
"""`model(theta) -> predictions (starts, runs), their derivatives (starts, runs, p)`."""


@dataclass(frozen=True)
class SparseLaw:
    """L(S, N, D) = (a_s (1 - S)^b_s + c_s) N^-b_n + (a_d / D)^b_d + c; S sparsity, N non-zero parameters, D data.

    Source: Frantar, Riquelme, Houlsby, Alistarh and Evci, 2023, arXiv 2309.08520.

    Attributes:
        intervals: name -> (low, high) of the coefficient over bootstrap samples of the runs.
        error: mean |log L - log fitted| of the runs it was fitted to.
    """

    a_s: float
    b_s: float
    c_s: float
    b_n: float
    a_d: float
    b_d: float
    c: float
    intervals: Mapping[str, tuple[float, float]]
    error: float

    def __call__(self, sparsity: float, parameters: float, data: float) -> float:
        """The loss of a run."""
        return self.capacity(sparsity) * parameters**-self.b_n + (self.a_d / data) ** self.b_d + self.c

    def capacity(self, sparsity: float) -> float:
        """a_s (1 - S)^b_s + c_s: the factor of sparsity on the capacity term."""
        return self.a_s * (1 - sparsity) ** self.b_s + self.c_s

    def dense_equivalent(self, sparsity: float, parameters: float) -> float:
        """Parameters of the dense model of the same loss on the same data: N (f(0) / f(S))^(1 / b_n)."""
        return parameters * (self.capacity(0.0) / self.capacity(sparsity)) ** (1 / self.b_n)

    def best_sparsity(self, parameters: float, flops: float, *, grid: int = 1000) -> float:
        """Sparsity of least loss at N non-zeros and a training budget of 6 D N dense-equivalent FLOPs.

        Training by gradual pruning costs 6 D N (0.25 / (1 - S) + 0.5 * mean of the cubic ramp + 0.25) when a model of
        N / (1 - S) parameters is dense for the first quarter, pruned over the second and third, sparse in the last.
        """
        found = [(self(s, parameters, flops / (6 * parameters * _training_share(s))), s) for s in _grid(grid)]
        return min(found)[1]


def fit_law(
    sparsity: Sequence[float],
    parameters: Sequence[float],
    data: Sequence[float],
    loss: Sequence[float],
    *,
    starts: int = 64,
    bootstrap: int = 100,
    level: float = 0.95,
    seed: int = 0,
) -> SparseLaw:
    """Fit by robust regression of log loss: Huber at 1e-3, Levenberg-Marquardt from many starts, the best of them.

    Intervals come from fits to the runs drawn with replacement.

    Args:
        sparsity, parameters, data, loss: one entry a run; parameters are non-zeros, data in any unit.
        starts: random starts.
        bootstrap: resamples; 0 gives no intervals.
        level: share of the resamples inside the intervals.

    Raises:
        ShapeError: sequences of different lengths.
        CalibrationError: fewer than eight runs, or a quantity that does not vary.
        NonFiniteError: a loss, size or sparsity out of range.
    """
    s, n, d, y = (torch.as_tensor(v, dtype=torch.float64).flatten() for v in (sparsity, parameters, data, loss))
    _check(s, n, d, y)
    centre_n, centre_d = n.log().mean(), d.log().mean()
    x = torch.stack([(1 - s).log(), n.log() - centre_n, d.log() - centre_d])
    g = torch.Generator().manual_seed(seed)
    fits, losses = _fit(x, y.log(), _starts(starts, y, g), torch.ones(starts, len(y), dtype=y.dtype))
    best = fits[losses.argmin()]
    weights = torch.stack([torch.bincount(torch.randint(len(y), (len(y),), generator=g), minlength=len(y)) for _ in range(bootstrap)]).double() if bootstrap else None  # fmt: skip
    intervals: dict[str, tuple[float, float]] = {}
    if weights is not None:
        again, _ = _fit(x, y.log(), best.expand(bootstrap, -1).clone(), weights)
        values = _coefficients(again, centre_n, centre_d)
        ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = values.quantile(ends, dim=0)
        intervals = {k: (float(a), float(b)) for k, a, b in zip(NAMES, low, high, strict=True)}
    values = _coefficients(best.unsqueeze(0), centre_n, centre_d)[0].tolist()
    error = float((_predict(best.unsqueeze(0), x)[0] - y.log()).abs().mean())
    return SparseLaw(*values, intervals=intervals, error=error)


def _check(s: Tensor, n: Tensor, d: Tensor, y: Tensor) -> None:
    if len({len(s), len(n), len(d), len(y)}) > 1:
        raise ShapeError(
            f"A law is fitted to runs: one sparsity, size, data size and loss each, got {len(s)}, {len(n)}, {len(d)}, {len(y)}."
        )
    good = bool(((s >= 0) & (s < 1)).all()) and all(bool((v.isfinite() & (v > 0)).all()) for v in (n, d, y))
    if not good:
        raise NonFiniteError("Runs need a sparsity in [0, 1), and positive finite sizes and losses.")
    flat = [name for name, v in (("sparsity", s), ("parameters", n), ("data", d)) if len(set(v.tolist())) < 2]
    if len(y) < len(NAMES) + 1 or flat:
        reason = f"{flat[0]} is the same in all runs" if flat else f"there are {len(y)} runs"
        raise CalibrationError(
            f"The law has {len(NAMES)} coefficients, and {reason}: vary all of sparsity, size and data."
        )


def _starts(count: int, y: Tensor, g: torch.Generator) -> Float[Tensor, "starts 7"]:
    """Terms of random size below the smallest loss, exponents between 0.05 and 1."""
    u = torch.rand(count, 7, generator=g, dtype=torch.float64)
    scale = y.min().log()
    logs, powers = scale - 4 * u, (0.05 + 0.95 * u).log()
    return torch.stack([powers[:, i] if name[0] == "b" else logs[:, i] for i, name in enumerate(NAMES)], dim=1)


def _terms(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sparse part, constant part of the capacity term, data term, floor; each batch x runs. Data: e^(a_d) D^-b_d, centred."""
    left, n, d = x
    t = theta.unsqueeze(2)
    a, b, c, power, data, slope, floor = (t[:, i] for i in range(7))
    size = -power.exp() * n
    return (
        (a + b.exp() * left + size).exp(),
        (c + size).exp(),
        (data - slope.exp() * d).exp(),
        floor.exp().expand(-1, len(n)),
    )


def _predict(theta: Tensor, x: Tensor) -> Float[Tensor, "batch runs"]:
    return torch.stack(_terms(theta, x)).sum(dim=0).log()


def _model(x: Tensor) -> Model:
    """log L of the law and its derivatives, at centred logarithms of the runs."""

    def predicted(theta: Tensor) -> tuple[Tensor, Tensor]:
        sparse, flat, data, floor = _terms(theta, x)
        total = sparse + flat + data + floor
        left, n, d = x
        powers = theta[:, (1, 3, 5)].exp().unsqueeze(2)
        columns = (
            sparse, sparse * left * powers[:, 0], flat, -(sparse + flat) * n * powers[:, 1], data,
            -data * d * powers[:, 2], floor,
        )  # fmt: skip
        return total.log(), torch.stack(columns, dim=2) / total.unsqueeze(2)

    return predicted


def _fit(x: Tensor, y: Tensor, theta: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return levenberg(_model(x), y, theta, weights)


def levenberg(
    model: Model, y: Float[Tensor, " runs"], theta: Float[Tensor, "starts p"], weights: Float[Tensor, "starts runs"]
) -> tuple[Float[Tensor, "starts p"], Float[Tensor, " starts"]]:
    """Levenberg-Marquardt with Huber weights (delta 1e-3) on all starts (or resamples) at once; parameters and losses.

    Args:
        model: theta -> (what it predicts for y, the derivatives).
    """
    damp = torch.full((len(theta),), 1e-2, dtype=theta.dtype)
    predicted, jacobian = model(theta)
    loss = _huber(predicted - y, weights)
    for _ in range(_STEPS):
        residual = predicted - y
        w = weights * (_DELTA / residual.abs().clamp(min=1e-300)).clamp(max=1)
        left_side = torch.einsum("brp,br,brq->bpq", jacobian, w, jacobian)
        right_side = torch.einsum("brp,br,br->bp", jacobian, w, residual)
        scale = left_side.diagonal(dim1=1, dim2=2).clamp(min=1e-12)
        damped = left_side + torch.diag_embed(scale * damp.unsqueeze(1) + 1e-14)
        step = torch.linalg.solve_ex(damped, right_side.unsqueeze(2)).result.squeeze(2).nan_to_num()
        moved = (theta - step.clamp(-1, 1)).clamp(-60, 60)
        there, slope = model(moved)
        after = _huber(there - y, weights)
        better = after < loss
        theta, loss = torch.where(better.unsqueeze(1), moved, theta), torch.where(better, after, loss)
        predicted, jacobian = (
            torch.where(better[:, None], there, predicted),
            torch.where(better[:, None, None], slope, jacobian),
        )
        damp = torch.where(better, damp / 3, damp * 4).clamp(1e-12, 1e8)
    return theta, loss


def _huber(residual: Tensor, weights: Tensor) -> Float[Tensor, " batch"]:
    size = residual.abs()
    each = torch.where(size <= _DELTA, size.square() / 2, _DELTA * (size - _DELTA / 2))
    return (weights * each.nan_to_num(nan=1e30, posinf=1e30)).sum(dim=1)


def _coefficients(theta: Tensor, centre_n: Tensor, centre_d: Tensor) -> Float[Tensor, "batch 7"]:
    """From centred logarithms to the coefficients of the formula, in the order of `NAMES`."""
    a, b, c, power, data, slope, floor = theta.unbind(dim=1)
    raised = power.exp() * centre_n
    return torch.stack(
        [
            (a + raised).exp(), b.exp(), (c + raised).exp(), power.exp(),
            (data / slope.exp() + centre_d).exp(), slope.exp(), floor.exp(),
        ],
        dim=1,
    )  # fmt: skip


def _grid(points: int) -> list[float]:
    return [i / points for i in range(int(0.98 * points) + 1)]


def _training_share(sparsity: float, steps: int = 64) -> float:
    """Mean over training of (parameters in use) / (non-zeros at the end), the cubic ramp over the middle half."""
    ramp = sum(1 - sparsity * (1 - (1 - (i + 0.5) / steps) ** 3) for i in range(steps)) / steps
    return (0.25 + 0.5 * ramp) / (1 - sparsity) + 0.25
