"""Attention of blocks of queries to keys that lie apart, and the largest score of such keys: read once for all queries of a block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.errors import KernelError, ShapeError
from sparseworks.exec.attention.blocks import _lists, _room_like, _view
from sparseworks.exec.attention.checks import check_heads, scale_of
from sparseworks.exec.attention.reference import softmax_attend
from sparseworks.exec.native import native


def attend_columns(
    q: Float[Tensor, "batch heads queries d"],
    k: Float[Tensor, "batch kv_heads keys d"],
    v: Float[Tensor, "batch kv_heads keys d"],
    mask: Bool[Tensor, "batch_or_1 heads_or_1 rows units"],
    *,
    tall: int,
    wide: int = 1,
    offset: int = 0,
    causal: bool = True,
    scale: float | None = None,
) -> tuple[Float[Tensor, "batch heads queries d"], Float[Tensor, "batch heads queries"]]:
    """softmax(scale q k' over the marked keys) v, and log sum e^{scale q k'}, where the queries of a row share their keys.

    Query i sits at position `offset + i`. Rows hold `tall` positions, units `wide` keys, both counted from position 0, so the first row
    and the last may be shorter. Queries without a key give 0 and -inf. On the CPU float32 runs in the extension, bfloat16 and half
    are widened, unless gradients are wanted; everything else in plain torch, differentiable.

    Args:
        causal: a query sees keys up to its own position.
        scale: of the scores; default 1 / sqrt(d).

    Raises:
        ShapeError: sizes that do not fit together.
        DtypeError: types that are not floating or differ.
    """
    check_heads(q, k, v, 4)
    _check_rows(q, k, mask, tall, wide, offset)
    dtype, factor = q.dtype, scale_of(scale, q.shape[3])
    q, k, v = (t.to(torch.promote_types(dtype, torch.float32)) for t in (q, k, v))
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    if grad or not _runs(q, mask):
        out, lse = _reference(q, k, v, mask, tall, wide, offset, causal, factor)
        return out.to(dtype), lse
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k, v))
    mask = _shared(mask, k.shape[1])
    ptr, columns = _lists(mask)
    out, lse = _room_like(q), q.new_empty(q.shape[:3])
    lists = [ptr.data_ptr(), columns.data_ptr(), mask.shape[1], tall, wide, mask.shape[0], offset]
    views = [_view(t) for t in (q, k, v, out)]
    native().prefill_columns(  # type: ignore[union-attr]
        *views, lse.data_ptr(), lists, _sizes(q, k), causal, factor, torch.get_num_threads()
    )
    return out.to(dtype), lse


def peaks(
    q: Float[Tensor, "batch heads queries d"],
    k: Float[Tensor, "batch kv_heads keys d"],
    places: Int[Tensor, "batch heads rows count"],
    *,
    tall: int,
    offset: int = 0,
    causal: bool = True,
    scale: float | None = None,
) -> Float[Tensor, "batch heads rows count"]:
    """max over the queries i of a row that see it of scale q_i . k_j, for the keys j = `places` of that row; no gradients.

    Rows hold `tall` positions, as in `attend_columns`. A key that no query of the row sees gives -inf.

    Raises:
        ShapeError: sizes that do not fit together.
        DtypeError: types that are not floating or differ.
        KernelError: places that are no keys.
    """
    check_heads(q, k, k, 4)
    rows = _rows(q.shape[2], tall, offset)
    if places.shape[:3] != (*q.shape[:2], len(rows)) or places.dim() != 4:
        raise ShapeError(f"Places are {(*q.shape[:2], len(rows))} and a count, got {tuple(places.shape)}.")
    if places.numel() and (int(places.min()) < 0 or int(places.max()) >= k.shape[2]):
        raise KernelError(f"A place lies outside the keys 0 to {k.shape[2] - 1}.")
    wide, factor = torch.promote_types(q.dtype, torch.float32), scale_of(scale, q.shape[3])
    q, k = q.detach().to(wide), k.detach().to(wide)
    if not _runs(q, places):
        return _reference_peaks(q, k, places, rows, offset, causal, factor)
    q, k = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k))
    places, out = places.int().contiguous(), q.new_empty(places.shape)
    native().peaks(  # type: ignore[union-attr]
        _view(q), _view(k), places.data_ptr(), out.data_ptr(), tall, places.shape[3], offset, _sizes(q, k), causal, factor,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def _runs(q: Tensor, kept: Tensor) -> bool:
    return native() is not None and q.is_cpu and q.dtype is torch.float32 and q.numel() > 0 and kept.numel() > 0


def _sizes(q: Tensor, k: Tensor) -> list[int]:
    return [q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], k.shape[3]]


def _rows(queries: int, tall: int, offset: int) -> list[slice]:
    """The queries of each row."""
    first, last = offset // tall, -(-(offset + queries) // tall)
    return [slice(max(0, r * tall - offset), min(queries, (r + 1) * tall - offset)) for r in range(first, last)]


def _check_rows(q: Tensor, k: Tensor, mask: Tensor, tall: int, wide: int, offset: int) -> None:
    if min(tall, wide) < 1 or offset < 0:
        raise ShapeError(
            f"Rows and units hold at least 1 token, offsets are not negative: {tall=}, {wide=}, {offset=}."
        )
    grid = len(_rows(q.shape[2], tall, offset)), -(-k.shape[2] // wide)
    lead = mask.dim() == 4 and mask.shape[0] in (1, q.shape[0]) and mask.shape[1] in (1, q.shape[1])
    if not lead or tuple(mask.shape[2:]) != grid or mask.dtype is not torch.bool:
        raise ShapeError(
            f"The mask is bool over ({q.shape[0]} or 1, {q.shape[1]} or 1, {grid[0]}, {grid[1]}), got {tuple(mask.shape)}, {mask.dtype}."
        )


def _shared(mask: Tensor, kv_heads: int) -> Tensor:
    """One row of lists for the heads that share keys, where they agree: what is gathered then serves all of them."""
    if mask.shape[1] in (1, kv_heads):
        return mask
    parts = mask.unflatten(1, (kv_heads, -1))
    return parts[:, :, 0] if bool((parts == parts[:, :, :1]).all()) else mask


def _reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, tall: int, wide: int, offset: int, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The marked keys of a row gathered, row by row."""
    outs, lses = [q[:, :, :0]], [q[:, :, :0, 0]]
    for row, marked, at in _marked(q, k, mask, tall, wide, offset):
        allowed = marked.unsqueeze(2)
        if causal:
            place = torch.arange(offset + row.start, offset + row.stop, device=q.device)
            allowed = allowed & (at.unsqueeze(2) <= place[:, None])
        out, lse = softmax_attend(q[:, :, row], _taken(k, q, at), _taken(v, q, at), allowed, scale)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs, 2), torch.cat(lses, 2)


def _marked(
    q: Tensor, k: Tensor, mask: Tensor, tall: int, wide: int, offset: int
) -> Iterator[tuple[slice, Bool[Tensor, "batch heads most"], Int[Tensor, "batch heads most"]]]:
    """Per row its queries and its keys, those of each head filled up to the most with keys that are not marked."""
    for r, row in enumerate(_rows(q.shape[2], tall, offset)):
        keys = mask[:, :, r].expand(*q.shape[:2], -1).repeat_interleave(wide, -1)[..., : k.shape[2]]
        count = keys.sum(-1, keepdim=True)
        most = int(count.max()) if count.numel() else 0
        at = keys.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[..., :most]
        yield row, torch.arange(most, device=q.device) < count, at


def _taken(x: Tensor, q: Tensor, at: Int[Tensor, "batch heads most"]) -> Float[Tensor, "batch heads most d"]:
    """Rows of x for every query head."""
    batch = torch.arange(q.shape[0], device=q.device)[:, None, None]
    head = torch.arange(q.shape[1], device=q.device)[:, None] // (q.shape[1] // x.shape[1])
    return x[batch, head, at]


def _reference_peaks(
    q: Tensor, k: Tensor, places: Tensor, rows: list[slice], offset: int, causal: bool, scale: float
) -> Tensor:
    found = q.new_empty(places.shape)
    for r, row in enumerate(rows):
        logits = q[:, :, row] @ _taken(k, q, places[:, :, r].long()).mT * scale
        if causal:
            place = torch.arange(offset + row.start, offset + row.stop, device=q.device)
            logits = logits.masked_fill(places[:, :, r].unsqueeze(2) > place[:, None], -torch.inf)
        found[:, :, r] = logits.amax(-2)
    return found
