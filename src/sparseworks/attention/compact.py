"""Compaction: heads that attend among a subset of tokens, from short sequences that keep their positions, scattered back."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.core.errors import ShapeError
from sparseworks.exec.attention import attend
from sparseworks.exec.attention.reference import softmax_attend

_TILE = 64
Found = tuple[Float[Tensor, "batch heads queries d"], Float[Tensor, "batch heads queries"]]


def attend_compact(
    heads: Heads, queries: Bool[Tensor, "batch heads queries"], keys: Bool[Tensor, "batch heads keys"]
) -> Found:
    """softmax over the kept keys at or before each kept query, times v; other queries give 0 and -inf.

    Causality goes by original positions, so tiles of kept tokens lie above the diagonal or below it wherever they came from
    (Pagliardini et al. 2023, arXiv 2306.01160). Batch and heads of the masks may be 1. Differentiable.

    Raises:
        ShapeError: masks that do not fit.
    """
    queries, keys = _fitting(queries, heads, heads.queries), _fitting(keys, heads, heads.keys)
    out, lse = torch.zeros_like(heads.q), heads.q.new_full(heads.q.shape[:-1], -torch.inf).float()
    for b in range(heads.batch):
        for h in range(heads.heads):
            at, to = queries[b, h].nonzero()[:, 0], keys[b, h].nonzero()[:, 0]
            if len(at) and len(to):
                o, s = _one(heads, b, h, at, to)
                out[b, h] = out[b, h].index_copy(0, at, o)
                lse[b, h] = lse[b, h].index_copy(0, at, s)
    return out, lse


def _one(heads: Heads, b: int, h: int, at: Tensor, to: Tensor) -> Found:
    q, k, v = heads.q[b, h, at], heads.k[b, h // heads.group, to], heads.v[b, h // heads.group, to]
    place = at + heads.offset
    if not heads.causal or torch.equal(place, to):  # the same set: the order among the kept is the order of all
        q, k, v = q[None, None], k[None, None], v[None, None]
        out, lse = attend(q, k, v, block=_TILE, causal=heads.causal, scale=heads.scale, return_lse=True)
        return out[0, 0], lse[0, 0].float()
    outs, lses = [], []
    for first in range(0, len(at), _TILE):
        rows = place[first : first + _TILE]
        seen = int(torch.searchsorted(to, rows[-1], right=True))
        mask = to[:seen] <= rows[:, None]
        some = q[first : first + _TILE].float()
        o, s = softmax_attend(some, k[:seen].float(), v[:seen].float(), mask, heads.factor)
        outs.append(o.to(q.dtype))
        lses.append(s)
    return torch.cat(outs), torch.cat(lses)


def compact_tiles(places: Int[Tensor, " queries"], keys: Int[Tensor, " keys"], tile: int = _TILE) -> int:
    """Tiles of kept queries x kept keys (positions, ascending) that hold a pair of the past: the others are skipped."""
    last = torch.stack([c[-1] for c in places.split(tile)]) if len(places) else places
    first = keys[::tile]
    return int((last[:, None] >= first).sum())


def attend_hashed(
    heads: Heads,
    query_codes: Int[Tensor, "batch heads queries"],
    key_codes: Int[Tensor, "batch heads keys"],
    *,
    tile: int = _TILE,
) -> tuple[Found, int]:
    """softmax over the keys of the query's own bucket (and past), times v, and the number of tiles computed.

    Tokens are sorted by (bucket, position); a tile is computed where the bucket ranges of its queries and keys meet. Queries whose
    bucket holds no key give 0 and -inf. (Pagliardini et al. 2023, arXiv 2306.01160)

    Raises:
        ShapeError: codes that do not fit.
    """
    query_codes, key_codes = _fitting(query_codes, heads, heads.queries), _fitting(key_codes, heads, heads.keys)
    out, lse = torch.zeros_like(heads.q), heads.q.new_full(heads.q.shape[:-1], -torch.inf).float()
    tiles = 0
    for b in range(heads.batch):
        for h in range(heads.heads):
            at, to = query_codes[b, h].argsort(stable=True), key_codes[b, h].argsort(stable=True)
            of, by = query_codes[b, h, at], key_codes[b, h, to].contiguous()
            k, v = heads.k[b, h // heads.group, to].float(), heads.v[b, h // heads.group, to].float()
            for first in range(0, len(at), tile):
                rows = slice(first, first + tile)
                ends = torch.stack([of[rows][0], of[rows][-1]])
                low = int(torch.searchsorted(by, ends[0])) // tile * tile
                high = min(-(-int(torch.searchsorted(by, ends[1], right=True)) // tile) * tile, len(to))
                if high <= low:
                    continue
                tiles += -(-(high - low) // tile)
                mask = of[rows, None] == by[low:high]
                if heads.causal:
                    mask = mask & (to[low:high] <= at[rows, None] + heads.offset)
                o, s = softmax_attend(heads.q[b, h, at[rows]].float(), k[low:high], v[low:high], mask, heads.factor)
                out[b, h, at[rows]], lse[b, h, at[rows]] = o.to(out.dtype), s
    return (out, lse), tiles


def _fitting(mask: Tensor, heads: Heads, tokens: int) -> Tensor:
    if (
        mask.dim() != 3
        or mask.shape[0] not in (1, heads.batch)
        or mask.shape[1] not in (1, heads.heads)
        or mask.shape[2] != tokens
    ):
        raise ShapeError(
            f"Subsets are (batch or 1, heads or 1, tokens) = ({heads.batch}, {heads.heads}, {tokens}), got {tuple(mask.shape)}."
        )
    return mask.expand(heads.batch, heads.heads, -1)
