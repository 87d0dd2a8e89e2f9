"""Norms of groups of coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.solve.penalty import PENALTIES, Norm, Step


@PENALTIES.register("group")
@dataclass(frozen=True)
class Group(Norm):
    """weight * sum_g ||z_g||_2 over consecutive groups; a group lives or dies as a whole.

    Attributes:
        sizes: coordinates of each group, in order, or one number for all.

    Source: Yuan and Lin, 2006.
    """

    separable = False
    complex_valued = True

    sizes: int | tuple[int, ...]
    weight: float = 1.0

    @classmethod
    def example(cls) -> Group:
        """Groups of two."""
        return cls(2, 0.7)

    def norms(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """||z_g||_2 at every coordinate of g."""
        squares = z.abs().square()
        if isinstance(self.sizes, int):
            each = squares.unflatten(-1, (-1, self.sizes)).sum(-1).sqrt()
            return each.repeat_interleave(self.sizes, dim=-1)
        group = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes)).to(z.device)
        each = squares.new_zeros(*z.shape[:-1], len(self.sizes)).index_add(-1, group, squares).sqrt()
        return each[..., group]

    def _members(self, z: Tensor) -> Tensor | int:
        """Size of the group of every coordinate."""
        sizes = torch.tensor(self.sizes, device=z.device)
        return self.sizes if isinstance(self.sizes, int) else sizes.repeat_interleave(sizes)

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """weight * sum_g ||z_g||."""
        return self.weight * (self.norms(z) / self._members(z)).sum(-1)

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """z_g (1 - step weight / ||z_g||)_+."""
        size = self.norms(z)
        return z * ((size - step * self.weight).clamp(min=0) / size.clamp(min=torch.finfo(size.dtype).tiny))

    def violation(self, z: Float[Tensor, "*rows n"], gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """|gradient_i + weight z_i / ||z_g||| of living groups, (||gradient_g|| - weight)_+ at every coordinate of dead ones."""
        size = self.norms(z)
        alive = (gradient + self.weight * z / size.clamp(min=torch.finfo(size.dtype).tiny)).abs()
        return torch.where(size > 0, alive, (self.norms(gradient) - self.weight).clamp(min=0))

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """max_g ||gradient_g|| / weight."""
        return self.norms(gradient).amax(-1) / self.weight


@PENALTIES.register("l21")
@dataclass(frozen=True)
class L21(Group):
    """weight * sum_r ||Z_r||_2 over the rows of a matrix of codes, which is given row after row; `sizes` are its columns."""

    @classmethod
    def example(cls) -> L21:
        """Matrices of three columns."""
        return cls(3, 0.7)
