"""Listed: what one query keeps, as lists instead of a mask over the grid."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparseworks.attention.heads import Heads
from sparseworks.attention.kept import Kept, Output
from sparseworks.core.errors import ShapeError
from sparseworks.core.pattern import Tile
from sparseworks.exec.attention import attend_tokens


class Listed(Kept):
    """Columns of units that one query attends to: a list for every head, for every key head, or one for all.

    Work and memory go with the lists; the mask is made only where somebody asks for it. List b * lists + l, of sequence b, is
    `idx[ptr[b * lists + l]:ptr[b * lists + l + 1]]`; in any order where units are single keys, else ascending.

    Attributes:
        batch, heads, lists, columns: sequences, query heads, lists of a sequence, units of a row.
    """

    def __init__(
        self, heads: Heads, unit: Tile, ptr: Int[Tensor, " lists+1"], idx: Int[Tensor, " count"], *, batch: int = 0
    ):
        own = {
            "unit": unit, "ptr": ptr, "idx": idx, "heads": heads.heads, "batch": batch or heads.batch,
            "columns": heads.grid(unit)[1], "lists": (len(ptr) - 1) // (batch or heads.batch),
        }  # fmt: skip
        for name, value in own.items():
            object.__setattr__(self, name, value)

    unit: Tile
    ptr: Tensor
    idx: Tensor
    heads: int
    batch: int
    lists: int
    columns: int

    @classmethod
    def of(cls, kept: Kept, heads: Heads) -> Listed:
        """The lists of a mask of one row."""
        rows = kept.mask.expand(heads.batch, -1, -1, -1).flatten(0, 2)
        return cls(heads, kept.unit, _pointers(rows.sum(-1)), rows.nonzero()[:, 1].int())

    @property
    def grid(self) -> tuple[int, int]:
        """One row of columns."""
        return 1, self.columns

    @property
    def mask(self) -> Bool[Tensor, "batch heads 1 columns"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The same as a mask, for those who look."""
        found = torch.zeros(len(self.ptr) - 1, self.columns, dtype=torch.bool)
        row = torch.arange(len(found)).repeat_interleave(self.ptr.diff())
        found[row, self.idx.long()] = True
        return self._by_head(found.view(self.batch, self.lists, 1, self.columns))

    def pairs(self, heads: Heads) -> Float[Tensor, "batch heads"]:
        """Kept pairs of every head."""
        ptr, _ = self.keys(heads)
        return self._by_head(ptr.diff().double().view(self.batch, self.lists)).expand(heads.batch, -1)

    def read(self, heads: Heads) -> int:
        """Tokens of key heads that any head of their group attends to."""
        if self.lists == heads.heads > heads.kv_heads:
            return super().read(heads)
        ptr, _ = self.keys(heads)
        return int(ptr[-1]) * (heads.kv_heads // self.lists) * (heads.batch // self.batch)

    def check(self, heads: Heads) -> None:
        """Raise ShapeError unless this is of a query over as many units."""
        if (self.heads, 1, self.columns) != (heads.heads, *heads.grid(self.unit)) or self.batch not in (
            1,
            heads.batch,
        ):
            raise ShapeError(
                f"Lists of {self.columns} units for one query of {self.heads} heads do not fit {heads.queries} queries of "
                f"{heads.heads} heads over {heads.grid(self.unit)[1]} units."
            )

    def keys(self, heads: Heads) -> tuple[Int[Tensor, " lists+1"], Int[Tensor, " count"]]:
        """The lists as lists of keys."""
        cols = self.unit.cols or heads.keys
        if cols == 1:
            return self.ptr, self.idx
        every = (self.idx.unsqueeze(-1) * cols + torch.arange(cols, dtype=torch.int32)).flatten()
        inside = every < heads.keys
        short = cols * self.columns - heads.keys
        full = F.pad(self.idx == self.columns - 1, (1, 0)).cumsum(0)[self.ptr.long()]
        return (self.ptr * cols - full * short).int(), every[inside]

    def attend(self, heads: Heads) -> Output:
        """By the kernel of token lists."""
        ptr, idx = self.keys(heads)
        edges = ptr.tolist()
        outs, lses = [], []
        for b in range(heads.batch):
            first = (b if self.batch > 1 else 0) * self.lists
            own = slice(edges[first], edges[first + self.lists])
            one, some = ptr[first : first + self.lists + 1] - edges[first], idx[own]
            if self.lists == 1 and heads.kv_heads > 1:
                one = torch.arange(heads.kv_heads + 1, dtype=torch.int32) * len(some)
                some = some.repeat(heads.kv_heads)
            out, lse = attend_tokens(heads.q[b], heads.k[b], heads.v[b], one, some, scale=heads.scale)
            outs.append(out)
            lses.append(lse)
        return torch.stack(outs), torch.stack(lses)

    def _by_head(self, x: Tensor) -> Tensor:
        """(batch, lists, ...) for every query head."""
        return x if self.lists == self.heads else x.repeat_interleave(self.heads // self.lists, 1)


def _pointers(counts: Tensor) -> Tensor:
    return F.pad(counts.cumsum(0), (1, 0)).int()
