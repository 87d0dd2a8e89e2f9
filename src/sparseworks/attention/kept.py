"""Kept: which units of an attention map are computed, and the attention over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.clusters import Clusters, members
from sparseworks.attention.compact import attend_compact
from sparseworks.attention.heads import Heads
from sparseworks.core.errors import ShapeError
from sparseworks.core.pattern import Tile
from sparseworks.core.support import Support
from sparseworks.exec.attention import attend, attend_columns, attend_tokens
from sparseworks.exec.attention.checks import STEP
from sparseworks.exec.attention.reference import softmax_attend
from sparseworks.exec.native import native

Output = tuple[Float[Tensor, "batch heads queries d"], Float[Tensor, "batch heads queries"]]


@dataclass(frozen=True)
class Kept:
    """Units of `unit` queries x keys that are attended to, over (batch or 1, heads or 1, rows, columns) of the grid of `Heads`.

    Attributes:
        mask: True where kept. Pairs of the future inside a kept unit are not attended to.
        unit: `Tile(64, 64)` blocks, `Tile(128, 1)` columns of a query block, `Tile(1, 16)` pages of a query, `Tile(None, 1)` a
            set of keys, ...
        queries: those that attend at all (the others give zeros and -inf); None: all.
        clusters: the units, where they are ragged; the mask is over them then.
        rest: what was computed besides for the units left out, in pairs, see `Rest.cost`; None: nothing.
    """

    mask: Bool[Tensor, "batch heads rows columns"]
    unit: Tile
    queries: Bool[Tensor, "batch heads queries"] | None = None
    clusters: Clusters | None = None
    rest: Float[Tensor, "batch heads"] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of units."""
        return self.mask.shape[-2], self.mask.shape[-1]

    @property
    def support(self) -> Support:
        """The same as a `Support`."""
        return Support.from_mask(self.mask)

    def grid_of(self, heads: Heads) -> tuple[int, int]:
        """Rows and columns of units that a call has."""
        return heads.grid(self.unit) if self.clusters is None else self.clusters.grid

    def density(self, heads: Heads) -> float:
        """Computed pairs over allowed pairs, counted: the kept ones, and what a rest spent in their terms."""
        return float(self.density_by_head(heads).mean())

    def density_by_head(self, heads: Heads) -> Float[Tensor, "batch heads"]:
        """The same of every head."""
        found = self.pairs(heads)
        found = found if self.rest is None else found + self.rest.to(found)
        return (found / int(heads.pairs(Tile(None, None)).sum())).float()

    def _pairs_of_units(self, heads: Heads) -> Int[Tensor, "batch heads"]:
        """Counted where all pairs of a unit are allowed, summed for the few units of a row that the diagonal cuts."""
        rows, columns = heads.edges(self.unit)
        device, many = self.mask.device, len(columns)
        if not many or not len(rows):
            return self.mask.sum((-2, -1))
        seen = rows + heads.offset if heads.causal else torch.full_like(rows, heads.keys)
        whole = torch.searchsorted(columns[:, 1].contiguous(), seen[:, :1] + int(heads.causal), right=True)
        some = torch.searchsorted(columns[:, 0].contiguous(), seen[:, 1:].contiguous())
        at = whole + torch.arange(int((some - whole).max()))
        cut = self.mask.gather(-1, at.clamp(max=many - 1).to(device).expand(*self.mask.shape[:2], -1, -1))
        pairs = heads.pairs_at(self.unit, at.clamp(max=many - 1)) * (at < some)
        inside = self.mask & (torch.arange(many) < whole).to(device)
        tall, wide = rows.diff(dim=1)[:, 0].to(device), columns.diff(dim=1)[:, 0].tolist()
        # All columns but the last are as wide as the first.
        keys = inside.sum(-1, dtype=torch.int32).long() * wide[0] + inside[..., -1] * (wide[-1] - wide[0])
        return (keys * tall).sum(-1) + (cut * pairs.to(device)).sum((-2, -1))

    def pairs(self, heads: Heads) -> Float[Tensor, "batch heads"]:
        """Kept pairs of every head."""
        if self.clusters is not None:
            found = (self.mask * self.clusters.pairs()).sum((-2, -1), dtype=torch.float64)
        elif self.queries is None:
            found = self._pairs_of_units(heads).double()
        else:  # row by row of units, since only some queries attend
            rows = heads.rows_of(self.unit.rows or 256)
            each = [self.tokens(heads, slice(first, last)).sum((-2, -1)) for first, last in rows]
            found = torch.stack(each).sum(0, dtype=torch.float64)
        return found.expand(heads.batch, heads.heads)

    def read(self, heads: Heads) -> int:
        """Tokens of key heads that any head of their group attends to."""
        pairs = self.tokens(heads, slice(None)).any(2).expand(heads.batch, heads.heads, -1)
        return int(pairs.unflatten(1, (heads.kv_heads, -1)).any(2).sum())

    def attend(self, heads: Heads) -> Output | None:
        """The attention over it, where it knows a way of its own."""
        return None

    def check(self, heads: Heads) -> None:
        """Raise ShapeError unless this lies on the grid of `heads`."""
        batch, some, *grid = self.mask.shape
        if tuple(grid) != self.grid_of(heads) or batch not in (1, heads.batch) or some not in (1, heads.heads):
            raise ShapeError(
                f"Units of {self.unit} over {heads.queries} queries and {heads.keys} keys form a grid of "
                f"({heads.batch} or 1, {heads.heads} or 1, {', '.join(map(str, self.grid_of(heads)))}); "
                f"the mask is {tuple(self.mask.shape)}."
            )

    def tokens(self, heads: Heads, rows: slice) -> Bool[Tensor, "batch heads rows keys"]:
        """The pairs of some queries as a mask over keys, those of the future left out."""
        if self.clusters is not None:
            return self._of_clusters(heads, rows)
        at, wide = (t.to(self.mask.device) for t in heads.unit_of(self.unit))
        mask = self.mask[:, :, at[rows]]
        mask = mask if self.unit.cols == 1 else mask[..., wide]
        if self.queries is not None:
            mask = mask & self.queries[:, :, rows, None]
        if not heads.causal:
            return mask
        place = torch.arange(heads.offset, heads.offset + heads.queries, device=mask.device)[rows]
        return mask & (torch.arange(heads.keys, device=mask.device) <= place[:, None])

    def _of_clusters(self, heads: Heads, rows: slice) -> Bool[Tensor, "batch heads rows keys"]:
        assert self.clusters is not None
        at, wide = members(self.clusters.rows, heads.queries)[..., rows], members(self.clusters.wide(), heads.keys)
        mask = self.mask.expand(*at.shape[:2], -1, -1)
        mask = mask.gather(2, at.unsqueeze(-1).expand(-1, -1, -1, mask.shape[-1]))
        return mask.gather(3, wide.unsqueeze(2).expand(-1, -1, mask.shape[2], -1))


def attend_kept(heads: Heads, kept: Kept) -> Output:
    """softmax over the kept pairs times v, and its log-sum-exp; the way is chosen by the shape of the units.

    Clusters: the queries of one over the keys of its own. Blocks of a common size of at least 16: the block kernel. Units of one query: lists of tokens. A set of queries: compacted.
    Anything else: the keys of a row of units, gathered. Differentiable where gradients are wanted (lists and rows of units are then masked).

    Raises:
        ShapeError: a mask that is not on the grid of `heads`.
    """
    kept.check(heads)
    wants = torch.is_grad_enabled() and any(t.requires_grad for t in (heads.q, heads.k, heads.v))
    own = None if wants else kept.attend(heads)
    if own is not None:
        return own
    out, lse = _way(heads, kept, wants)(heads, kept)
    if kept.queries is None:
        return out, lse
    return out.masked_fill(~kept.queries.unsqueeze(-1), 0), lse.masked_fill(~kept.queries, -torch.inf)


def attend_with_bias(heads: Heads, kept: Kept, bias: Float[Tensor, "batch kv_heads keys"]) -> Output:
    """The same with a bias for every key added to its logits: exactly, by one more channel, q' = (q, 1) and k' = (k, bias / scale).

    Raises:
        ShapeError: a mask that is not on the grid of `heads`.
    """
    q = F.pad(heads.q, (0, 1), value=1.0)
    k = torch.cat([heads.k, (bias / heads.factor).unsqueeze(-1).to(heads.k.dtype)], -1)
    out, lse = attend_kept(heads.with_(q=q, k=k, v=F.pad(heads.v, (0, 1)), scale=heads.factor), kept)
    return out[..., : heads.d], lse


def _way(heads: Heads, kept: Kept, wants: bool) -> Callable[[Heads, Kept], Output]:
    if kept.clusters is not None:
        return attend_clusters
    if _block(kept.unit):
        return attend_blocks
    if wants:
        return attend_sets if kept.unit == Tile(None, 1) else attend_masked
    compiled = native() is not None and heads.q.is_cpu and heads.q.dtype is not torch.float64
    single = kept.unit.rows == 1 and compiled and heads.q.dtype is torch.float32 and heads.d % STEP == 0
    if heads.queries == 1 or (single and heads.queries):
        return attend_lists
    if kept.unit == Tile(None, 1) and kept.queries is not None:
        return attend_sets
    # Plain torch takes rows one by one, which pays where they are few.
    return attend_units if compiled or (kept.unit.rows or heads.queries) >= 16 else attend_masked


def _block(unit: Tile) -> int:
    """The size of square blocks into which units can be cut, 0 if there is none worth it."""
    size = gcd(unit.rows or 1, unit.cols or 1)
    return size if size >= 16 else 0


def attend_blocks(heads: Heads, kept: Kept) -> Output:
    """By the block kernel: units cut into squares, rows that earlier calls computed left empty."""
    if heads.queries == 1:  # it sees all keys: there is no diagonal to lie on, and no earlier row to leave empty
        heads = heads.with_(causal=False)
    size, unit = _block(kept.unit), kept.unit
    mask = kept.mask.repeat_interleave((unit.rows or 1) // size, -2).repeat_interleave((unit.cols or 1) // size, -1)
    before = heads.offset // size
    skipped = heads.offset - heads.offset // (unit.rows or 1) * (unit.rows or 1)
    mask = mask[..., skipped // size :, : -(-heads.keys // size)]
    rows = -(-(heads.offset + heads.queries) // size) - before
    mask = F.pad(mask[..., :rows, :], (0, 0, before, 0))
    q = F.pad(heads.q, (0, 0, heads.offset, 0)) if heads.offset else heads.q
    found = attend(
        q, heads.k, heads.v, Support.from_mask(mask), block=size, causal=heads.causal, scale=heads.scale, return_lse=True
    )  # fmt: skip
    out, lse = found
    return out[:, :, heads.offset :], lse[:, :, heads.offset :]


def attend_lists(heads: Heads, kept: Kept) -> Output:
    """The tokens that each query keeps, read one by one; some queries at a time."""
    some = max(1, (1 << 24) // max(1, heads.batch * heads.heads * heads.keys))
    parts = [
        _listed(heads, kept, slice(first, min(first + some, heads.queries))) for first in range(0, heads.queries, some)
    ]
    outs, lses = zip(*parts, strict=True)
    return torch.cat(outs, 2), torch.cat(lses, 2)


def _listed(heads: Heads, kept: Kept, rows: slice) -> Output:
    """Every query of every head as a head of one query."""
    mask = kept.tokens(heads, rows).expand(heads.batch, heads.heads, -1, -1)
    outs, lses = [], []
    for b in range(heads.batch):
        lists = mask[b].flatten(0, 1)
        ptr = F.pad(lists.sum(-1).cumsum(0), (1, 0))
        q = heads.q[b, :, rows].flatten(0, 1).unsqueeze(1)
        out, lse = attend_tokens(q, heads.k[b], heads.v[b], ptr, lists.nonzero()[:, 1], scale=heads.scale)
        outs.append(out.view(heads.heads, -1, heads.d))
        lses.append(lse.view(heads.heads, -1))
    return torch.stack(outs), torch.stack(lses)


def attend_units(heads: Heads, kept: Kept) -> Output:
    """Rows of queries, each over keys of its own that are read once for all of them."""
    unit = kept.unit
    tall, wide = unit.rows or max(1, heads.offset + heads.queries), unit.cols or max(1, heads.keys)
    return attend_columns(
        heads.q, heads.k, heads.v, kept.mask, tall=tall, wide=wide, offset=heads.offset, causal=heads.causal, scale=heads.scale
    )  # fmt: skip


def attend_sets(heads: Heads, kept: Kept) -> Output:
    """Every head over a set of keys of its own, from a sequence that holds nothing else."""
    queries = kept.queries
    if queries is None:
        queries = torch.ones(1, 1, heads.queries, dtype=torch.bool, device=heads.q.device)
    return attend_compact(heads, queries, kept.mask[:, :, 0])


def attend_clusters(heads: Heads, kept: Kept) -> Output:
    """The queries of each cluster over the keys that it keeps, gathered once for all of them."""
    assert kept.clusters is not None
    wide = torch.promote_types(heads.q.dtype, torch.float32)
    keys = members(kept.clusters.wide(), heads.keys)
    outs, lses = [], []
    for b in range(heads.batch):
        for h in range(heads.heads):
            k, v = (t[b, h // heads.group].to(wide) for t in (heads.k, heads.v))
            mask = kept.mask[b, h][:, keys[b, h]]
            for row, q in enumerate(heads.q[b, h].to(wide).split(kept.clusters.rows[b, h].tolist())):
                own = mask[row].nonzero()[:, 0]
                out, lse = softmax_attend(q, k[own], v[own], torch.ones_like(own, dtype=torch.bool), heads.factor)
                outs.append(out)
                lses.append(lse)
    shape = heads.q.shape[:3]
    return torch.cat(outs).view(*shape, -1).to(heads.q.dtype), torch.cat(lses).view(shape)


def attend_masked(heads: Heads, kept: Kept) -> Output:
    """Masked scores, some queries at a time: never queries x keys at once. The reference of all other ways."""
    wide = torch.promote_types(heads.q.dtype, torch.float32)
    k, v = (heads.shared(t.to(wide)) for t in (heads.k, heads.v))
    some = max(1, min(heads.queries, (1 << 22) // max(1, heads.batch * heads.heads * heads.keys)))
    outs, lses = [], []
    for first in range(0, heads.queries, some):
        rows = slice(first, min(first + some, heads.queries))
        out, lse = softmax_attend(heads.q[:, :, rows].to(wide), k, v, kept.tokens(heads, rows), heads.factor)
        outs.append(out.to(heads.q.dtype))
        lses.append(lse)
    return torch.cat(outs, 2), torch.cat(lses, 2)


def whole(heads: Heads) -> Kept:
    """Every allowed pair."""
    unit = Tile(64, 64)
    return Kept(torch.ones(1, 1, *heads.grid(unit), dtype=torch.bool, device=heads.q.device), unit)
