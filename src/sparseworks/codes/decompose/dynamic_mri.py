"""Dynamic MRI from few samples of k-space, with two total variations and two nuclear norms, by a primal-dual method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex
from torch import Tensor

from sparseworks.codes.decompose.robust_pca import shrink_spectrum
from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError
from sparseworks.solve.penalty import soft


@dataclass(frozen=True)
class Sequence:
    """A reconstructed image sequence.

    Attributes:
        images: X.
        error: E, what the samples hold beside X, image by image.
        change: ||X - X of the step before|| / ||X|| at the end.
        steps: iterations.
    """

    images: Complex[Tensor, "frames rows cols"]
    error: Complex[Tensor, "frames rows cols"]
    change: float
    steps: int


def rdledm(
    samples: Complex[Tensor, "frames rows cols"],
    sampled: Bool[Tensor, "frames rows cols"],
    variation: tuple[float, float] = (0.005, 0.01),
    nuclear: tuple[float, float] = (0.01, 0.05),
    error_weight: float = 5.0,
    *,
    steps: int = 200,
    tolerance: float = 1e-4,
) -> Sequence:
    """min ||F_O (X + E) - b||^2 / 2 + v_s ||D_rows,cols X||_1 + v_t ||D_t X||_1 + n_s ||X_(space)||_* + n_t ||X_(time)||_* + w ||E||^2.

    F is the unitary 2-D transform of every frame, O the sampled places. X_(time) has a frame a row, X_(space) an image row (of all
    frames) a row. Primal-dual: p <- prox_{s F*}(p + s K x'), x <- x - t (K^T p + data), x' = 2 x - x_before; E is minimised out in
    closed form, which leaves the data term with weight 2 w / (1 + 2 w). Weights are for data whose magnitudes are about 1.

    Args:
        samples: b, zero where nothing was sampled.
        variation: v_s, v_t.
        nuclear: n_s, n_t.

    Raises:
        ShapeError: samples and mask are not (frames, rows, cols) both, or there are no samples.
        NonFiniteError: NaN or infinity.
        BudgetError: a weight below 0, an error weight, tolerance or number of steps that is not positive.

    Source: Tan, Qing and Xu, 2023 (arXiv 2310.14934); the objective is our reading of it.
    """
    _check(samples, sampled, (*variation, *nuclear), (error_weight, tolerance, steps))
    b = samples * sampled
    # min over E of the two quadratics: the residual r is shared as E = r / (1 + 2 w), so the data term is 2w/(1+2w) ||r||^2 / 2.
    fidelity = 2 * error_weight / (1 + 2 * error_weight)
    x = torch.fft.ifft2(b, norm="ortho")
    ahead, duals = x, [torch.zeros_like(x) for _ in range(5)]
    weights = (variation[0], variation[0], variation[1])
    # Duals are bounded by the weights, about a fiftieth of the images: a small dual step and a large one for the images.
    # Condat's rule with the Lipschitz constant 1 of the data term: 1 / t - s ||K||^2 >= 1 / 2, ||K||^2 <= 3 * 4 + 2.
    sigma = 0.05
    tau = 1 / (0.5 + sigma * 14)
    change, done = float("inf"), 0
    while done < steps and change > tolerance:
        for axis, weight in enumerate(weights):
            moved = duals[axis] + sigma * _difference(ahead, (1, 2, 0)[axis])
            duals[axis] = moved - soft(moved, weight)
        for side, weight in enumerate(nuclear):
            moved = duals[3 + side] + sigma * ahead
            duals[3 + side] = moved - _fold(shrink_spectrum(_unfold(moved, side), weight), side, moved.shape)
        residual = torch.fft.ifft2(sampled * torch.fft.fft2(x, norm="ortho") - b, norm="ortho")
        back = sum((_back(duals[a], (1, 2, 0)[a]) for a in range(3)), duals[3] + duals[4])
        new = x - tau * (back + fidelity * residual)
        change = float((new - x).norm() / new.norm().clamp(min=1e-30))
        ahead, x, done = 2 * new - x, new, done + 1
    rest = torch.fft.ifft2(b - sampled * torch.fft.fft2(x, norm="ortho"), norm="ortho")
    return Sequence(x, rest / (1 + 2 * error_weight), change, done)


def _unfold(x: Tensor, side: int) -> Tensor:
    """Space: an image row of all frames a row; time: a frame a row."""
    return x.transpose(0, 1).flatten(1) if side == 0 else x.flatten(1)


def _fold(m: Tensor, side: int, shape: torch.Size) -> Tensor:
    return m.view(shape[1], shape[0], shape[2]).transpose(0, 1) if side == 0 else m.view(shape)


def _difference(x: Tensor, axis: int) -> Tensor:
    """Forward difference, 0 at the far end."""
    return torch.cat([x.diff(dim=axis), torch.zeros_like(x.narrow(axis, 0, 1))], axis)


def _back(p: Tensor, axis: int) -> Tensor:
    """The adjoint of the forward difference."""
    inner = p.narrow(axis, 0, p.shape[axis] - 1)
    zero = torch.zeros_like(p.narrow(axis, 0, 1))
    return torch.cat([zero, inner], axis) - torch.cat([inner, zero], axis)


def _check(samples: Tensor, sampled: Tensor, weights: tuple[float, ...], positive: tuple[float, ...]) -> None:
    if (
        samples.dim() != 3
        or not samples.is_complex()
        or sampled.shape != samples.shape
        or sampled.dtype is not torch.bool
    ):
        raise ShapeError(
            f"Samples are complex (frames, rows, cols) and their mask bool of that shape, got {samples.dtype} {tuple(samples.shape)} and "
            f"{sampled.dtype} {tuple(sampled.shape)}."
        )
    if not bool(sampled.any()):
        raise ShapeError("Nothing was sampled.")
    if not bool(torch.isfinite(torch.view_as_real(samples)).all()):
        raise NonFiniteError("Samples hold NaN or infinity.")
    if min(weights) < 0 or min(positive) <= 0:
        raise BudgetError(
            f"Weights are not negative, and error weight, tolerance and steps positive, got {weights} and {positive}."
        )


def spectrum_mask(
    frames: int, rows: int, cols: int, density: float, centre: float = 0.04, seed: int = 0
) -> Bool[Tensor, "frames rows cols"]:
    """Variable-density samples of k-space, another draw each frame: P ~ 1 / (1 + (r / 0.1)^2), a small centre always; zero frequency first.

    Raises:
        BudgetError: a density outside (0, 1], or below the centre's.
    """
    if not 0 < density <= 1 or not 0 <= centre < density:
        raise BudgetError(f"A density lies in (0, 1] and above the centre's, got {density} and {centre}.")
    from sparseworks.core.select import top

    radius = (torch.fft.fftfreq(rows)[:, None] ** 2 + torch.fft.fftfreq(cols)[None] ** 2).sqrt()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(frames, rows, cols, generator=generator).clamp(min=1e-9).log()
    keys = noise * (1 + (radius / 0.1).square())  # exponential races: the largest keys are a draw without replacement
    keys = keys.masked_fill(radius.flatten().argsort().argsort().view(rows, cols) < centre * rows * cols, torch.inf)
    return top(keys.view(frames, 1, -1), max(1, round(density * rows * cols))).view(frames, rows, cols)
