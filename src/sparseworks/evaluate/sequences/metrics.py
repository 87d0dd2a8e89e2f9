"""Fidelity of sparse attention: mass recall, relative error, overlap of supports, peak signal-to-noise ratio."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.errors import DtypeError, ShapeError
from sparseworks.core.support import Support

Kept = Bool[Tensor, "*b queries keys"] | Int[Tensor, "*b queries count"] | Support
"""Which pairs are kept: a mask, key indices of every query (padded with -1), or a `Support`; leading axes broadcast."""

_CHUNK = 1 << 24
"""Scores held at a time."""


def mass_recall(
    q: Float[Tensor, "batch heads queries d"], k: Float[Tensor, "batch kv_heads keys d"], kept: Kept, *,
    causal: bool = False, scale: float | None = None,
) -> Float[Tensor, "batch heads"]:  # fmt: skip
    """Mean over queries of sum_kept A_ij with A = softmax(q k^T scale): the share of attention that the kept pairs hold.

    Causal rows are aligned at the end (query i sees keys up to keys - queries + i); kept future keys count for nothing.
    Take the mean of the answer for one figure, its minimum for the worst head.

    Args:
        q: queries.
        k: keys; query head h reads KV head h // (heads // kv_heads).
        kept: see `Kept`.
        causal: hide the future.
        scale: default 1 / sqrt(d).

    Raises:
        ShapeError: shapes do not fit.
        DtypeError: `kept` is neither boolean nor integer.
    """
    return mass_rows(q, k, kept, causal=causal, scale=scale).mean(-1)


def mass_rows(
    q: Float[Tensor, "batch heads queries d"], k: Float[Tensor, "batch kv_heads keys d"], kept: Kept, *,
    causal: bool = False, scale: float | None = None,
) -> Float[Tensor, "batch heads queries"]:  # fmt: skip
    """`mass_recall` of every query on its own."""
    batch, heads, queries, d = q.shape
    if k.ndim != 4 or k.shape[0] != batch or heads % k.shape[1] or k.shape[-1] != d:
        raise ShapeError(f"Queries {tuple(q.shape)} and keys {tuple(k.shape)} do not fit: (batch, heads, tokens, d).")
    keys = k.shape[2]
    mask = kept_mask(kept, keys)
    try:
        mask = mask.expand(batch, heads, queries, keys)
    except RuntimeError:
        raise ShapeError(
            f"Kept pairs of shape {tuple(mask.shape)} do not fit {(batch, heads, queries, keys)} (batch, heads, queries, keys)."
        ) from None
    k = k.repeat_interleave(heads // k.shape[1], dim=1)
    scale = 1 / math.sqrt(d) if scale is None else scale
    out = []
    step = max(1, _CHUNK // max(batch * heads * keys, 1))
    for start in range(0, queries, step):
        scores = q[:, :, start : start + step].float() @ k.float().mT * scale
        if causal:
            last = torch.arange(start, start + scores.shape[2], device=q.device) + keys - queries
            scores = scores.masked_fill(torch.arange(keys, device=q.device) > last[:, None], -torch.inf)
        part = mask[:, :, start : start + step].to(q.device)
        out.append((scores.softmax(-1).nan_to_num() * part).sum(-1))
    return torch.cat(out, dim=2)


def kept_mask(kept: Kept, keys: int) -> Bool[Tensor, "*b queries keys"]:
    """Kept pairs as a mask; indices below 0 are padding.

    Raises:
        DtypeError: neither boolean nor integer.
        ShapeError: a mask with another number of keys, or an index beyond them.
    """
    if isinstance(kept, Support):
        kept = kept.mask()
    if kept.dtype == torch.bool:
        if kept.shape[-1] != keys:
            raise ShapeError(f"The mask has {kept.shape[-1]} columns for {keys} keys.")
        return kept
    if kept.is_floating_point() or kept.is_complex():
        raise DtypeError(f"Kept pairs are a boolean mask or integer key indices, not {kept.dtype}.")
    if kept.numel() and int(kept.max()) >= keys:
        raise ShapeError(f"Key index {int(kept.max())} of {keys} keys.")
    room = torch.zeros(*kept.shape[:-1], keys + 1, dtype=torch.bool, device=kept.device)
    return room.scatter_(-1, torch.where(kept < 0, keys, kept).long(), True)[..., :keys]


def rel_l2(
    out: Float[Tensor, "*shape"], dense: Float[Tensor, "*shape"], *, axes: int | None = None
) -> Float[Tensor, "*leading"]:
    """||out - dense||_F / ||dense||_F, over everything or over the last `axes` axes (2: one figure a head).

    Raises:
        ShapeError: different shapes.
    """
    if out.shape != dense.shape:
        raise ShapeError(f"Outputs of shapes {tuple(out.shape)} and {tuple(dense.shape)} cannot be compared.")
    over = tuple(range(-(out.ndim if axes is None else axes), 0))
    norm = torch.linalg.vector_norm
    dense = dense.float()
    return norm(out.float() - dense, dim=over) / norm(dense, dim=over).clamp(min=1e-30)


def iou(a: Bool[Tensor, "*shape"] | Support, b: Bool[Tensor, "*shape"] | Support) -> float:
    """|a and b| / |a or b|; 1 if both are empty.

    Raises:
        ShapeError: different shapes.
    """
    both, either, _ = _common(a, b)
    return both / either if either else 1.0


def overlap(a: Bool[Tensor, "*shape"] | Support, b: Bool[Tensor, "*shape"] | Support) -> float:
    """|a and b| / |b|: the share of b that a has; 1 if b is empty.

    Raises:
        ShapeError: different shapes.
    """
    both, _, second = _common(a, b)
    return both / second if second else 1.0


def index_overlap(a: Int[Tensor, "*b m"], b: Int[Tensor, "*b n"], keys: int) -> Float[Tensor, "*b"]:
    """Share of the indices b of every row that are also in a (both without repeats, padded with -1)."""
    first, second = kept_mask(a, keys), kept_mask(b, keys)
    return (first & second).sum(-1) / second.sum(-1).clamp(min=1)


def psnr(out: Float[Tensor, "*shape"], dense: Float[Tensor, "*shape"], peak: float | None = None) -> float:
    """10 log10(peak^2 / mean squared error) in dB; peak: by default the range of `dense`. Infinite if equal.

    Raises:
        ShapeError: different shapes.
    """
    if out.shape != dense.shape:
        raise ShapeError(f"Samples of shapes {tuple(out.shape)} and {tuple(dense.shape)} cannot be compared.")
    peak = float(dense.max() - dense.min()) if peak is None else peak
    error = float((out.double() - dense.double()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(peak * peak / error)


def _common(a: Tensor | Support, b: Tensor | Support) -> tuple[int, int, int]:
    first, second = (s.mask() if isinstance(s, Support) else s.bool() for s in (a, b))
    if first.shape != second.shape:
        raise ShapeError(f"Supports of shapes {tuple(first.shape)} and {tuple(second.shape)} cannot be compared.")
    return int((first & second).sum()), int((first | second).sum()), int(second.sum())
