"""Rows of text that begin and end alike: what is masked at the end can be read far away, at the beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparseworks.core.errors import CalibrationError


@dataclass(frozen=True)
class Repeats:
    """Rows `a b a` of ASCII codes.

    Attributes:
        ids: characters.
        again: True in the second `a`.
    """

    ids: Int[Tensor, "rows length"]
    again: Bool[Tensor, "rows length"]

    def masked(self, token: int, share: float = 0.5, seed: int = 0) -> Int[Tensor, "rows length"]:
        """The rows with `token` in place of each character of the second `a` with probability `share`."""
        drawn = torch.rand(self.ids.shape, generator=torch.Generator().manual_seed(seed)) < share
        return torch.where(drawn & self.again, token, self.ids)

    def accuracy(self, found: Int[Tensor, "rows length"], masked: Int[Tensor, "rows length"]) -> float:
        """Share of the characters hidden in `masked` that are right in `found`; 1 if none is hidden."""
        hidden = masked != self.ids
        return float((found == self.ids)[hidden].float().mean()) if hidden.any() else 1.0


def repeats(prose: Sequence[str], length: int = 256, *, size: int | None = None, seed: int = 0) -> Repeats:
    """One row a piece of prose: its first `length` - size characters, then its first `size` once more.

    Args:
        prose: texts of at least `length` characters; what is not ASCII becomes `?`.
        length: characters of a row.
        size: of `a`, at most half a row; default: another in every row, from a sixth to a half of it, so that no fixed distance
            finds the first `a`.
        seed: of the sizes.

    Raises:
        CalibrationError: a text is too short, or a size out of range.
    """
    if any(len(p) < length for p in prose) or (size is not None and not 0 < size <= length // 2):
        raise CalibrationError(
            f"Every text needs {length} characters, and `a` takes 1 to {length // 2} of them; got {size}."
        )
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(length // 6, length // 2 + 1, (len(prose),), generator=g)
    if size is not None:
        sizes.fill_(size)
    rows = [p[: length - s] + p[:s] for p, s in zip(prose, sizes.tolist(), strict=True)]
    ids = torch.tensor([list(row.encode("ascii", "replace")) for row in rows]).view(len(rows), length)
    return Repeats(ids, torch.arange(length) >= length - sizes[:, None])
