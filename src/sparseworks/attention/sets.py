"""Attention within ragged sets: windows of occupied voxels cut into sets of one size, gathered, attended densely, written back once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.exec.attention.checks import check_heads, scale_of
from sparseworks.exec.attention.reference import softmax_attend

ORDERS = {"x": (0, 1, 2), "y": (1, 0, 2)}
"""By which axis voxels of a window are ordered first; the rotated sets of odd layers are those of "y"."""


@dataclass(frozen=True)
class Sets:
    """Tokens in sets of one size; a token may fill several slots.

    Attributes:
        slots: token of each slot.
        fresh: whether the slot holds its token for the first time in its set: the others are no keys.
        source: for each token the slot, counted through all sets, from which its output is taken.
    """

    slots: Int[Tensor, "sets size"]
    fresh: Bool[Tensor, "sets size"]
    source: Int[Tensor, " tokens"]

    @classmethod
    def of(cls, slots: Int[Tensor, "sets size"], tokens: int) -> Sets:
        """Sets of any kind, however made.

        Raises:
            ShapeError: a token is in no set, or a slot holds none of the tokens.
        """
        flat = slots.flatten()
        if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < tokens:
            raise ShapeError(f"Slots hold tokens 0 to {tokens - 1}, got {int(flat.min())} to {int(flat.max())}.")
        source = torch.full((tokens,), flat.numel(), dtype=torch.long, device=slots.device)
        source.scatter_reduce_(0, flat, torch.arange(flat.numel(), device=slots.device), "amin")
        if tokens and int(source.max()) == flat.numel():
            raise ShapeError(f"Token {int(source.argmax())} is in no set and would have no output.")
        order = slots.argsort(dim=1, stable=True)
        ranked = slots.gather(1, order)
        first = torch.ones_like(ranked, dtype=torch.bool)
        first[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
        return cls(slots, torch.zeros_like(first).scatter(1, order, first), source)

    def attend(
        self,
        q: Float[Tensor, "heads tokens d"],
        k: Float[Tensor, "kv_heads tokens d"],
        v: Float[Tensor, "kv_heads tokens d"],
        *,
        scale: float | None = None,
    ) -> Float[Tensor, "heads tokens d"]:
        """softmax(scale q k') v within each set; a token of several sets has the output of its first. Differentiable.

        Raises:
            ShapeError: sizes that do not fit together, or another number of tokens.
            DtypeError: types that are not floating or differ.
        """
        check_heads(q, k, v, 3)
        if q.shape[1] != len(self.source) or k.shape[1] != len(self.source):
            raise ShapeError(f"These sets are of {len(self.source)} tokens, q has {q.shape[1]} and k {k.shape[1]}.")
        k, v = (t.repeat_interleave(q.shape[0] // k.shape[0], dim=0) for t in (k, v))
        q_, k_, v_ = (t[:, self.slots] for t in (q, k, v))
        out, _ = softmax_attend(q_, k_, v_, self.fresh[:, None, :], scale_of(scale, q.shape[-1]))
        return out.flatten(1, 2)[:, self.source]


def voxel_sets(
    voxels: Int[Tensor, "tokens axes"],
    window: tuple[int, ...],
    size: int,
    *,
    order: str = "x",
    shift: tuple[int, ...] = (),
    sample: Int[Tensor, " tokens"] | None = None,
) -> Sets:
    """A window with N occupied voxels makes S = ceil(N / size) sets; slot k of set j holds rank floor((j size + k) N / (S size)).

    Even layers order the voxels of a window by x first, odd ones by y first, so that two layers join what one order never does;
    windows shift from block to block. At most tokens + windows (size - 1) slots.

    Args:
        voxels: coordinates (x, y) or (x, y, z) of occupied voxels, not negative, in any order.
        window: voxels of a window along each axis.
        size: tokens of a set (36 or 48 in the paper).
        order: "x" or "y"; ties go to the other axis, then z.
        shift: by how many voxels the windows are moved along each axis; default: none.
        sample: which cloud of a batch each voxel belongs to; clouds share no window.

    Raises:
        ShapeError: coordinates, window or shift that do not fit together, sets of no token, or an unknown order.

    Source: Wang et al., 2023, arXiv 2301.06051 (DSVT).
    """
    axes = voxels.shape[-1] if voxels.dim() == 2 else 0
    moved = shift or (0,) * axes
    if axes not in (2, 3) or len(window) != axes or len(moved) != axes or min(*window, size) < 1:
        raise ShapeError(
            f"Voxels are (tokens, 2 or 3) with a window and a shift of as many axes and sets of at least one token; got "
            f"{tuple(voxels.shape)}, window={window}, shift={shift}, size={size}."
        )
    if order not in ORDERS:
        raise ShapeError(f"Voxels are ordered by 'x' or 'y' first, not {order!r}.")
    if voxels.numel() and int(voxels.min()) < 0:
        raise ShapeError("Coordinates of voxels are not negative; subtract the least of each axis.")
    at = voxels.long() + torch.tensor(moved, device=voxels.device)
    cell = at // torch.tensor(window, device=voxels.device)
    keys = [at[:, a] for a in ORDERS[order] if a < axes]
    home = _numbered(torch.cat([cell, _of_sample(sample, voxels)], dim=1))
    ranked = _lexicographic([home, *keys])
    return Sets.of(ranked[_ranks(torch.bincount(home), size)], len(voxels))


def _of_sample(sample: Tensor | None, voxels: Tensor) -> Tensor:
    if sample is None:
        return voxels.new_zeros(len(voxels), 1).long()
    if sample.shape != voxels.shape[:1]:
        raise ShapeError(f"`sample` has one number for each of {len(voxels)} voxels, got shape {tuple(sample.shape)}.")
    return sample.long()[:, None]


def _numbered(rows: Int[Tensor, "tokens columns"]) -> Int[Tensor, " tokens"]:
    """The same number for equal rows, counted from 0."""
    return torch.unique(rows, dim=0, return_inverse=True)[1]


def _lexicographic(keys: list[Tensor]) -> Int[Tensor, " tokens"]:
    """Tokens sorted by the first key, then the second, ..."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    return order


def _ranks(occupied: Int[Tensor, " windows"], size: int) -> Int[Tensor, "sets size"]:
    """For all windows one behind the other: where in the sorted tokens each slot is filled from."""
    sets = (occupied + size - 1) // size
    window = torch.repeat_interleave(torch.arange(len(occupied), device=occupied.device), sets)
    inside = torch.arange(len(window), device=occupied.device) - (sets.cumsum(0) - sets)[window]
    slot = inside[:, None] * size + torch.arange(size, device=occupied.device)
    rank = slot * occupied[window, None] // (sets[window, None] * size)
    return (occupied.cumsum(0) - occupied)[window, None] + rank
