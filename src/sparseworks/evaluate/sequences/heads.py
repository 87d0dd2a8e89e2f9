"""Planted heads: attention maps whose form is known - bands, frame-periodic bands, columns, spatial and temporal heads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.evaluate.sequences.qkv import QKV, ar1, isolated

Grid = tuple[int, int, int]
"""Frames, rows, columns; token (t, y, x) has the place (t * rows + y) * columns + x."""


def band_mask(n: int, width: int) -> Bool[Tensor, "n n"]:
    """|i - j| <= width."""
    at = torch.arange(n)
    return (at[:, None] - at).abs() <= width


def periodic_mask(n: int, period: int, width: int) -> Bool[Tensor, "n n"]:
    """i - j within `width` of a multiple of the period: the same place in every frame."""
    at = torch.arange(n)
    rest = (at[:, None] - at) % period
    return torch.minimum(rest, period - rest) <= width


def column_mask(n: int, columns: Sequence[int] | Int[Tensor, " columns"]) -> Bool[Tensor, "n n"]:
    """Keys that every query sees."""
    mask = torch.zeros(n, n, dtype=torch.bool)
    mask[:, torch.as_tensor(columns)] = True
    return mask


def spatial_mask(grid: Grid) -> Bool[Tensor, "n n"]:
    """Tokens of the same frame."""
    frame = coordinates(grid)[:, 0]
    return frame[:, None] == frame


def temporal_mask(grid: Grid) -> Bool[Tensor, "n n"]:
    """Tokens at the same place of any frame."""
    _, y, x = coordinates(grid).T
    return (y[:, None] == y) & (x[:, None] == x)


def coordinates(grid: Grid) -> Int[Tensor, "n 3"]:
    """(t, y, x) of every token."""
    axes = [torch.arange(size) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def planted(masks: Sequence[Bool[Tensor, "n n"]], *, d: int = 64, gain: float = 6.0, noise: float = 1.0, rho: float = 0.0,
            batch: int = 1, seed: int = 0) -> QKV:  # fmt: skip
    """One head a mask: logits of about `gain` on the mask and noise of deviation about `noise` elsewhere.

    The best rank-d/2 factors of the mask (its truncated SVD, U S^1/2 and V S^1/2) fill half of the channels, white noise the
    other half; so a mask of rank above d / 2 is planted smoothly (bands are, their edges are soft). Values are white noise.

    Args:
        masks: boolean maps, one a head, all n x n.
        d: width of a head, even.
        gain: mean logit on the mask above that off it.
        noise: deviation of the logits' random part.
        rho: correlation of neighbouring values.
        batch: sequences, with their own noise.
        seed: of everything drawn.

    Raises:
        ShapeError: no masks, masks of different sizes, or an odd width.
        BudgetError: a mask that is empty or full, which nothing can stand out from.
    """
    if not masks or len({tuple(m.shape) for m in masks}) > 1 or masks[0].shape[0] != masks[0].shape[1] or d % 2:
        raise ShapeError(
            f"Need masks of one n x n shape and an even width, got {[tuple(m.shape) for m in masks]}, d = {d}."
        )
    g = torch.Generator().manual_seed(seed)
    half, n = d // 2, masks[0].shape[0]
    parts = [_factors(mask, half, gain * math.sqrt(d)) for mask in masks]
    left = torch.stack([a for a, _ in parts]).expand(batch, -1, -1, -1)
    right = torch.stack([b for _, b in parts]).expand(batch, -1, -1, -1)
    size = math.sqrt(noise) * 2**0.25  # half of d channels: deviation size^2 sqrt(d / 2) / sqrt(d)
    q, k = (torch.cat([t, size * torch.randn(batch, len(masks), n, half, generator=g)], dim=-1) for t in (left, right))
    return QKV(q, k, ar1(batch, len(masks), n=n, d=d, rho=rho, generator=g))


def _factors(mask: Tensor, rank: int, gain: float) -> tuple[Tensor, Tensor]:
    """A, B with A B^T the best approximation of the mask of that rank, stretched to `gain` between on and off."""
    if not mask.any() or mask.all():
        raise BudgetError("A planted mask needs kept and dropped pairs.")
    u, s, v = torch.svd_lowrank(mask.double(), q=min(2 * rank, len(mask)), niter=6)
    u, s, v = u[:, :rank], s[:rank], v[:, :rank]
    low = (u * s) @ v.T
    height = low[mask].mean() - low[~mask].mean()
    root = (s * gain / height).sqrt()
    return F.pad((u * root).float(), (0, rank - len(s))), F.pad((v * root).float(), (0, rank - len(s)))


def frames(grid: Grid, *, d: int = 64, heads: int = 1, smooth: float = 1.5, rho: float = 0.9, scale: float = 1.25,
           batch: int = 1, seed: int = 0) -> QKV:  # fmt: skip
    """Tokens of a video: every frame is a random field correlated over both axes, and frames follow each other as an AR(1).

    Fields are white noise under a Gaussian blur of deviation `smooth` cells, scaled to unit variance;
    queries and keys see the same field through two random projections, values through a third.

    Raises:
        BudgetError: |rho| > 1 or a negative blur.
    """
    if abs(rho) > 1 or smooth < 0:
        raise BudgetError(f"Need |rho| <= 1 and smooth >= 0, got {rho} and {smooth}.")
    g = torch.Generator().manual_seed(seed)
    count, rows, cols = grid
    noise = torch.randn(count, batch * heads * d, rows, cols, generator=g)
    blurred = torch.einsum("yr,tcrx->tcyx", _blur(rows, smooth), noise)
    blurred = torch.einsum("xr,tcyr->tcyx", _blur(cols, smooth), blurred)
    field = [blurred[0]]
    for frame in blurred[1:]:
        field.append(rho * field[-1] + math.sqrt(1 - rho * rho) * frame)
    tokens = torch.stack(field, dim=1).view(batch, heads, d, -1).transpose(-1, -2)
    turns = torch.linalg.qr(torch.randn(2, heads, d, d, generator=g)).Q
    mix = torch.linalg.qr(torch.randn(heads, d, d, generator=g)).Q
    q = scale * (0.5 * tokens + math.sqrt(0.75) * tokens @ turns[0])
    return QKV(q, scale * tokens, tokens @ mix)


def _blur(n: int, deviation: float) -> Float[Tensor, "n n"]:
    """Rows of unit norm, so that white noise keeps unit variance."""
    at = torch.arange(n, dtype=torch.float32)
    if deviation == 0:
        return torch.eye(n)
    return F.normalize((-((at[:, None] - at) ** 2) / (2 * deviation**2)).exp(), dim=1)


def heavy_columns(n: int, count: int, *, apart: int = 3, seed: int = 0) -> Int[Tensor, " count"]:
    """Isolated columns for `column_mask`."""
    return isolated(n, count, apart, torch.Generator().manual_seed(seed))
