"""Penalty: what a code costs, its proximal map, and how far a point is from being optimal."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.registry import Registry

PENALTIES: Registry[type[Penalty]] = Registry("penalty", "sparseworks.solve.penalties")

Step = float | Float[Tensor, "*#rows"] | Float[Tensor, "*#rows n"]
"""A step size: one, one a row `(rows, 1)`, or one a coordinate; penalties that are not separable by coordinate take no last."""


class Penalty:
    """g(z), row by row of a batch of codes (rows, n); complex codes where `complex_valued`.

    A subclass is a frozen dataclass that defines `value` and `prox`, and, where it has a subdifferential that can be
    written down, `violation`. Capabilities are the class attributes below; who needs one that is missing refuses in a sentence.
    """

    registered_name: ClassVar[str]
    convex: ClassVar[bool] = True
    separable: ClassVar[bool] = True
    """g(z) = sum_i g_i(z_i): coordinate descent and screening may be used."""
    complex_valued: ClassVar[bool] = False

    def value(self, z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """g(z) of every row."""
        raise NotImplementedError

    def prox(self, z: Float[Tensor, "*rows n"], step: Step) -> Float[Tensor, "*rows n"]:
        """argmin_u ||u - z||^2 / 2 + step * g(u); of several minimisers the one nearest to zero."""
        raise NotImplementedError

    def violation(self, z: Float[Tensor, "*rows n"], gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        """Distance of -gradient to the subdifferential of g at z, coordinate by coordinate: 0 where z is optimal.

        Falls back on the fixed point |z - prox(z - gradient, 1)| where a subclass has nothing better.
        """
        return (z - self.prox(z - gradient, 1.0)).abs()

    def largest(self, gradient: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """The factor of this penalty from which on z = 0 is optimal, given the datafit's gradient at 0.

        Raises:
            NotImplementedError: no such factor, or it is not known.
        """
        raise NotImplementedError

    def conjugate(self, v: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """sup_z <v, z> - g(z), infinite outside its domain: the other half of a duality gap.

        Raises:
            NotImplementedError: not known for this penalty, or it is not convex; solvers then certify by the violation.
        """
        raise NotImplementedError

    def support(self, z: Float[Tensor, "*rows n"]) -> Tensor:
        """bool: the coordinates that the penalty has not set to 0."""
        return z != 0


def soft(z: Tensor, threshold: Step) -> Tensor:
    """sign(z) (|z| - threshold)_+; for complex z the modulus shrinks and the phase stays."""
    if not z.is_complex():
        return (
            z - z.clamp(min=-threshold, max=threshold)
            if isinstance(threshold, float | int)
            else (torch.sign(z) * (z.abs() - threshold).clamp(min=0))
        )
    size = z.abs()
    return z * ((size - threshold).clamp(min=0) / size.clamp(min=torch.finfo(size.dtype).tiny))


class Norm(Penalty):
    """A penalty that is convex and positively homogeneous: `largest` is the norm dual to it (its gauge, where it is one-sided)."""

    def conjugate(self, v: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
        """0 where the dual norm of v is at most 1, infinite elsewhere; a rounding error beyond 1 is let pass."""
        beyond = self.largest(-v) > 1 + 32 * torch.finfo(v.dtype).eps
        return torch.zeros_like(beyond, dtype=torch.float64).masked_fill(beyond, torch.inf).to(v.real.dtype)


def project_l1_ball(v: Float[Tensor, "*rows n"], radius: Step) -> Float[Tensor, "*rows n"]:
    """argmin ||u - v|| with sum |u_i| <= radius: soft(v, t), t from the sorted magnitudes.

    Source: Duchi, Shalev-Shwartz, Singer and Chandra, 2008 (Efficient projections onto the l1-ball).
    """
    size = v.abs()
    radius = torch.as_tensor(radius, dtype=size.dtype, device=v.device)
    ordered = size.sort(dim=-1, descending=True).values
    ranks = torch.arange(1, v.shape[-1] + 1, dtype=size.dtype, device=v.device)
    excess = (ordered.cumsum(-1) - radius) / ranks
    kept = (ordered > excess).sum(-1, keepdim=True).clamp(min=1)
    threshold = excess.gather(-1, kept - 1).clamp(min=0)
    return torch.where(size.sum(-1, keepdim=True) <= radius, v, soft(v, threshold))
