"""Ledgers: text with entries `Kx` at the top and the same entries, in another order, at the bottom; what is between is prose.

What a masked language model fills in at the bottom is right or wrong, and only the top, far away, tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparseworks.core.errors import BudgetError

_ENTRY = 3
"""Characters of `Kx ` with the space."""


@dataclass(frozen=True)
class Ledger:
    """Rows of ASCII codes.

    Attributes:
        ids: characters.
        asked: the small letters at the bottom.
        start: first column of the bottom.
    """

    ids: Int[Tensor, "rows length"]
    asked: Bool[Tensor, " length"]
    start: int

    def masked(self, token: int) -> Int[Tensor, "rows length"]:
        """The rows with `token` in place of what is asked for."""
        return torch.where(self.asked, token, self.ids)

    def accuracy(self, found: Int[Tensor, "rows length"]) -> float:
        """Share of the letters asked for that are right; guessing gives 1 / 26."""
        return float((found == self.ids)[:, self.asked].float().mean())


def ledger(prose: Sequence[str], length: int = 256, *, entries: int = 8, asked: int | None = None, seed: int = 0) -> Ledger:  # fmt: skip
    """One row a piece of prose, which is cut or repeated to fill the middle.

    Keys are different capital letters, values small letters at random.

    Args:
        prose: ASCII text for the middles; characters beyond ASCII become `?`.
        length: characters of a row.
        entries: at the top, at most 26.
        asked: at the bottom, the first of another order; default: all.
        seed: of keys, values and orders.

    Raises:
        BudgetError: too many entries, or no room.
    """
    asked = entries if asked is None else asked
    room = length - _ENTRY * (entries + asked)
    if not 1 <= asked <= entries <= 26 or room < 2:
        raise BudgetError(f"{entries} entries of which {asked} are asked for do not fit into {length} characters.")
    g = torch.Generator().manual_seed(seed)
    rows = len(prose)
    keys = torch.rand(rows, 26, generator=g).argsort(dim=1)[:, :entries] + ord("A")
    values = torch.randint(ord("a"), ord("z") + 1, (rows, entries), generator=g)
    top = torch.stack([keys, values, torch.full_like(keys, ord(" "))], dim=-1)
    order = torch.rand(rows, entries, generator=g).argsort(dim=1)[:, :asked]
    bottom = top.gather(1, order.unsqueeze(-1).expand(-1, -1, _ENTRY))
    middle = torch.tensor(
        [list(((p or " ") * (room // max(len(p), 1) + 1))[: room - 1].encode("ascii", "replace")) for p in prose]
    )
    line = torch.full((rows, 1), ord("\n"))
    ids = torch.cat([top.flatten(1), middle.view(rows, -1), line, bottom.flatten(1)], dim=1)
    place = torch.arange(length) - (length - _ENTRY * asked)
    return Ledger(ids, (place >= 0) & (place % _ENTRY == 1), length - _ENTRY * asked)
