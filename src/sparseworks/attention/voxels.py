"""Cubes of occupied voxels: tokens that lie in the same cube of a grid, their means, their neighbours, and attention to chosen ones."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.exec.attention import merge
from sparseworks.exec.attention.checks import check_heads, scale_of
from sparseworks.exec.attention.reference import softmax_attend

Output = tuple[Float[Tensor, "heads tokens d"], Float[Tensor, "heads tokens"]]


@dataclass(frozen=True)
class Cubes:
    """The occupied cubes of a grid, in order of their coordinates; empty ones do not exist and cost nothing.

    Attributes:
        at: coordinates of each cube, in cubes.
        home: the cube in which each token lies.
        order: tokens, cube by cube.
        ptr: tokens of cube c are `order[ptr[c]:ptr[c + 1]]`.
    """

    at: Int[Tensor, "cubes 3"]
    home: Int[Tensor, " tokens"]
    order: Int[Tensor, " tokens"]
    ptr: Int[Tensor, " cubes+1"]

    @classmethod
    def of(cls, voxels: Int[Tensor, "tokens 3"], side: int, *, shift: int = 0) -> Cubes:
        """Cubes of `side` voxels along each axis, the grid moved by `shift` voxels.

        Raises:
            ShapeError: coordinates that are not (tokens, 3), or a side below 1.
        """
        if voxels.dim() != 2 or voxels.shape[1] != 3 or side < 1:
            raise ShapeError(
                f"Voxels are (tokens, 3) in cubes of at least 1 voxel, got {tuple(voxels.shape)} and {side}."
            )
        at, home = torch.unique(
            torch.div(voxels.long() + shift, side, rounding_mode="floor"), dim=0, return_inverse=True
        )
        sizes = torch.bincount(home, minlength=len(at))
        return cls(at, home, home.argsort(stable=True), torch.nn.functional.pad(sizes.cumsum(0), (1, 0)))

    @property
    def sizes(self) -> Int[Tensor, " cubes"]:
        """Tokens of each cube."""
        return self.ptr.diff()

    def mean(self, x: Float[Tensor, "tokens c"]) -> Float[Tensor, "cubes c"]:
        """Of the tokens of each cube."""
        return x.new_zeros(len(self.at), x.shape[1]).index_add(0, self.home, x) / self.sizes[:, None]

    def neighbours(self) -> Int[Tensor, "cubes 27"]:
        """The cubes around each cube, itself in the middle; the number of cubes where there is none."""
        low = self.at.amin(0) - 1
        span = self.at.amax(0) - low + 2
        stride = torch.stack([span[1] * span[2], span[2], torch.ones_like(span[2])])
        code = ((self.at - low) * stride).sum(1)  # ascending, as cubes are
        steps = torch.tensor(list(product((-1, 0, 1), repeat=3)), device=code.device)
        wanted = code[:, None] + (steps * stride).sum(1)
        found = torch.searchsorted(code, wanted).clamp(max=len(code) - 1)
        return torch.where(code[found] == wanted, found, len(code))

    def pairs(self, chosen: Int[Tensor, "kv_heads tokens k"]) -> float:
        """(query, key) pairs of attention to the chosen cubes, the mean of heads."""
        return float(self.sizes[chosen].sum()) / len(chosen)

    def attend(
        self,
        q: Float[Tensor, "heads tokens d"],
        k: Float[Tensor, "kv_heads tokens d"],
        v: Float[Tensor, "kv_heads tokens d"],
        chosen: Int[Tensor, "kv_heads tokens k"],
        *,
        scale: float | None = None,
    ) -> Output:
        """softmax(scale q k') v over all tokens of the cubes each query chose, and its log-sum-exp; heads of a group share the choice.

        Cube by cube with the queries that chose it, merged by log-sum-exp: its tokens are read once for all of them.
        Differentiable.

        Args:
            chosen: different cubes of each query.

        Raises:
            ShapeError: sizes that do not fit together.
            DtypeError: types that are not floating or differ.
        """
        check_heads(q, k, v, 3)
        if chosen.shape[:2] != k.shape[:2] or q.shape[1] != k.shape[1] or q.shape[1] != len(self.home):
            raise ShapeError(
                f"There are {len(self.home)} tokens and {len(k)} key heads; got q {tuple(q.shape)} and a choice of {tuple(chosen.shape)}."
            )
        (kv_heads, tokens, per), cubes, group = chosen.shape, len(self.at), len(q) // len(k)
        asked = (chosen + torch.arange(kv_heads, device=chosen.device)[:, None, None] * cubes).flatten()
        order, sizes = asked.argsort(stable=True), self.sizes.repeat(kv_heads).tolist()
        # A group of heads reads the same keys: its queries lie one behind the other.
        rows = q.unflatten(0, (kv_heads, group)).transpose(1, 2).flatten(0, 1)[order // per].flatten(0, 1)
        asks = (group * torch.bincount(asked, minlength=kv_heads * cubes)).tolist()
        held = zip(rows.split(asks), *(t[:, self.order].flatten(0, 1).split(sizes) for t in (k, v)), strict=True)
        every, scale = torch.ones(1, 1, dtype=torch.bool, device=q.device), scale_of(scale, q.shape[-1])
        outs, lses = zip(
            *(softmax_attend(some, keys, values, every, scale) for some, keys, values in held), strict=True
        )
        shape, back = (kv_heads, tokens, per, group), order.argsort()
        out = torch.cat(outs).unflatten(0, (-1, group))[back].view(*shape, -1)
        lse = torch.cat(lses).unflatten(0, (-1, group))[back].view(shape)
        out, lse = merge([(out[:, :, i], lse[:, :, i]) for i in range(per)])
        return out.transpose(1, 2).flatten(0, 1), lse.transpose(1, 2).flatten(0, 1)
