"""Spectral unmixing: non-negative spectra times sparse abundances, with bands that misbehave turned down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError

_LEAST = 1e-9
BandWeights = Callable[[Float[Tensor, " bands"], int], Float[Tensor, " bands"]]
"""(squared residual norm of every band, round) -> weights of half-quadratic minimisation."""
Shrinkage = Callable[[Float[Tensor, "k pixels"]], Float[Tensor, "k pixels"]]
"""Abundances -> what their sparsity adds to the denominator of the update."""


@dataclass(frozen=True)
class Unmixed:
    """Y ~ M A.

    Attributes:
        endmembers: M.
        abundances: A, every column about summing to 1.
        bands: the last weight of every band, the median 1: small for what was found corrupted.
    """

    endmembers: Float[Tensor, "bands k"]
    abundances: Float[Tensor, "k pixels"]
    bands: Float[Tensor, " bands"]


def unmix(
    cube: Float[Tensor, "bands pixels"],
    endmembers: int | Float[Tensor, "bands k"],
    weights: BandWeights,
    shrinkage: Shrinkage,
    *,
    steps: int = 500,
    sum_to_one: float = 1.0,
    fixed: bool = False,
) -> Unmixed:
    """Multiplicative updates of a weighted sparse NMF: A <- A (M^T W Y) / (M^T W M A + shrinkage(A)), M <- M (Y A^T) / (M A A^T).

    Row weights have the median 1 in every round, so that the price of sparsity is in units of the typical band; they cancel in the
    update of M. The sum to one is a row of `sum_to_one` times the mean band that is appended to Y and M.

    Args:
        cube: not negative.
        endmembers: how many (they begin as the pixels that successive projections pick), or what to begin with.
        weights: of the bands, from their residuals, anew every round; see `group_bands` and `correntropy`.
        shrinkage: see `l1`, `root` and `guided`.
        fixed: leave the endmembers as they are.

    Raises:
        ShapeError: no matrix, or endmembers of other bands.
        BudgetError: negative entries, or more endmembers than bands or pixels.
        NonFiniteError: NaN or infinity.
    """
    y, m = _checked(cube, endmembers)
    k = m.shape[1]
    scale = sum_to_one * float(y.mean())
    a = torch.full((k, y.shape[1]), 1 / k, dtype=y.dtype)
    full = torch.cat([y, torch.full((1, y.shape[1]), scale, dtype=y.dtype)])
    w = torch.ones(len(y), dtype=y.dtype)
    for step in range(steps):
        tall = torch.cat([m, torch.full((1, k), scale, dtype=y.dtype)])
        weighed = tall * torch.cat([w, w.new_ones(1)]).unsqueeze(1)
        a = a * (weighed.T @ full) / (weighed.T @ tall @ a + shrinkage(a)).clamp(min=_LEAST)
        a = a.clamp(min=_LEAST)
        if not fixed:
            m = (m * (y @ a.T) / (m @ (a @ a.T)).clamp(min=_LEAST)).clamp(min=_LEAST)
        w = weights((y - m @ a).square().sum(1), step)
        w = w / w.median().clamp(min=torch.finfo(y.dtype).tiny)
    return Unmixed(m.to(cube.dtype), a.to(cube.dtype), w.to(cube.dtype))


def even(residuals: Tensor, step: int) -> Tensor:
    """Every band counts the same: plain NMF."""
    del step
    return torch.ones_like(residuals)


def group_bands(residuals: Tensor, step: int) -> Tensor:
    """1 / (2 ||r_l||): half-quadratic weights of sum_l ||r_l||_2, the l2,1 norm."""
    del step
    return 0.5 / (residuals.sqrt() + 1e-6)


def correntropy(residuals: Tensor, step: int) -> Tensor:
    """exp(-||r_l||^2 / sigma^2); sigma^2 is the mean residual for a hundred rounds, twice the median after."""
    sigma = residuals.mean() if step < 100 else 2 * residuals.median()
    return torch.exp(-residuals / sigma.clamp(min=torch.finfo(residuals.dtype).tiny)).clamp(min=1e-12)


def l1(weight: float) -> Shrinkage:
    """weight * sum A: the same everywhere."""
    return lambda a: torch.full_like(a, weight)


def root(weight: float) -> Shrinkage:
    """weight * sum A^(1/2) beside half of the squared error: its derivative. With abundances that sum to one the l1 norm is a constant; this is not."""
    return lambda a: 0.5 * weight * a.clamp(min=1e-3) ** -0.5


def guided(weight: float, shape: tuple[int, int] | None = None) -> Shrinkage:
    """weight sum A^(1 - h_n) beside the squared error: half its derivative; h_n in [0, 1) is the sparseness of pixel n, smoothed over 3 x 3 neighbours.

    Sparseness is Hoyer's, (sqrt(k) - ||a||_1 / ||a||_2) / (sqrt(k) - 1): 0 where endmembers mix evenly, towards 1 where one rules.
    """

    def of(a: Tensor) -> Tensor:
        root = len(a) ** 0.5
        h = (root - a.sum(0) / a.norm(dim=0).clamp(min=_LEAST)) / max(root - 1, _LEAST)
        if shape is not None:
            image = torch.nn.functional.pad(h.view(1, 1, *shape), (1, 1, 1, 1), mode="replicate")
            h = torch.nn.functional.avg_pool2d(image, 3, 1).flatten()
        h = h.clamp(0, 0.99)
        return 0.5 * weight * (1 - h) * a.clamp(min=1e-3) ** -h

    return of


def rrlbs(
    cube: Float[Tensor, "bands pixels"],
    endmembers: int | Float[Tensor, "bands k"],
    weight: float = 0.05,
    shape: tuple[int, int] | None = None,
    steps: int = 1000,
) -> Unmixed:
    """min over M, A >= 0 of sum_bands ||(Y - M A)_band||_2 + weight' sum_n sum_k A_kn^(1 - h_n), h learned with A.

    Args:
        weight: weight' times twice the median of ||(Y - M A)_band||: of squared errors in which the typical band counts once.
        shape: height and width of the image, if its pixels are to share h with their neighbours.

    Raises:
        ShapeError, BudgetError, NonFiniteError: as `unmix`.

    Source: Zhu, Wang, Fan, Meng, Xiang and Pan, 2014 (arXiv 1409.0685). The map h is not given there in closed form; ours is Hoyer's sparseness.
    """
    return unmix(cube, endmembers, group_bands, guided(weight, shape), steps=steps)


def correntropy_nmf(
    cube: Float[Tensor, "bands pixels"],
    endmembers: int | Float[Tensor, "bands k"],
    weight: float = 0.05,
    steps: int = 1000,
) -> Unmixed:
    """max over M, A >= 0 of sum_l exp(-||(Y - M A)_l||^2 / sigma^2) - weight' sum A^(1/2), half-quadratically.

    Args:
        weight: of sum A^(1/2) beside half of the squared errors, in which the median band counts once.

    Raises:
        ShapeError, BudgetError, NonFiniteError: as `unmix`.

    Source: Wang, Pan, Xiang and Zhu, 2015 (correntropy-based sparse NMF for unmixing).
    """
    return unmix(cube, endmembers, correntropy, root(weight), steps=steps)


def purest(cube: Float[Tensor, "bands pixels"], k: int) -> Float[Tensor, "bands k"]:
    """k pixels by successive projections: the longest residual, projected out, again and again (Araujo et al., 2001)."""
    rest, chosen = cube.clone(), []
    for _ in range(k):
        chosen.append(int(rest.square().sum(0).argmax()))
        along = rest[:, chosen[-1]] / rest[:, chosen[-1]].norm().clamp(min=_LEAST)
        rest = rest - along[:, None] * (along @ rest)
    return cube[:, chosen]


def spectral_angle(found: Float[Tensor, "bands k"], true: Float[Tensor, "bands k"]) -> float:
    """Mean angle in radians between endmembers, matched so that their sum is least (Hungarian; needs scipy)."""
    from scipy.optimize import linear_sum_assignment

    unit = lambda m: m / m.norm(dim=0).clamp(min=_LEAST)  # noqa: E731
    angles = torch.arccos((unit(true).T @ unit(found)).clamp(-1, 1))
    return float(angles[linear_sum_assignment(angles.numpy())].mean())


def _checked(cube: Tensor, endmembers: int | Tensor) -> tuple[Tensor, Tensor]:
    if cube.dim() != 2 or not cube.numel():
        raise ShapeError(f"A cube is a matrix (bands, pixels), got {tuple(cube.shape)}.")
    given = endmembers if isinstance(endmembers, Tensor) else cube
    if not bool(torch.isfinite(cube).all() & torch.isfinite(given).all()):
        raise NonFiniteError("The cube or the endmembers hold NaN or infinity.")
    if bool((cube < 0).any()) or bool((given < 0).any()):
        raise BudgetError("Unmixing needs a cube and endmembers that are not negative.")
    if isinstance(endmembers, Tensor):
        if endmembers.dim() != 2 or len(endmembers) != len(cube):
            raise ShapeError(f"Endmembers {tuple(endmembers.shape)} do not have the cube's {len(cube)} bands.")
        return cube.double(), endmembers.double().clamp(min=_LEAST)
    if not 1 <= endmembers <= min(cube.shape):
        raise BudgetError(f"{endmembers} endmembers of a cube {tuple(cube.shape)}: give 1 to {min(cube.shape)}.")
    return cube.double(), purest(cube.double(), endmembers).clamp(min=_LEAST)
