"""Datafit: how well a prediction explains what was observed."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sparseworks.core.registry import Registry

DATAFITS: Registry[type[Datafit]] = Registry("datafit", "sparseworks.solve.datafits")


class Datafit:
    """f(u; y), row by row, u = A z the prediction and y the observation, both (rows, m); convex and differentiable in u.

    Attributes:
        curvature: a Lipschitz constant of the gradient in u, or infinity where there is none.
    """

    registered_name: ClassVar[str]
    curvature: float

    def refuses(self, y: Float[Tensor, "*rows m"]) -> str | None:
        """Why these are not observations of it, in a sentence; None where they are."""
        del y
        return None

    def value(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows"]:
        """f of every row."""
        raise NotImplementedError

    def gradient(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows m"]:
        """df / du."""
        raise NotImplementedError

    def bend(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows m"]:
        """d2f / du2 where f is a sum over coordinates, or what makes a quadratic model that lies above f: for prox-Newton steps.

        Raises:
            NotImplementedError: not a sum, or not known.
        """
        raise NotImplementedError

    def conjugate(self, v: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"]) -> Float[Tensor, "*rows"]:
        """sup_u <v, u> - f(u; y), infinite outside its domain: what a duality gap needs.

        Raises:
            NotImplementedError: not known for this datafit; solvers then certify by the violation alone.
        """
        raise NotImplementedError

    def prox(self, u: Float[Tensor, "*rows m"], y: Float[Tensor, "*rows m"], step: float) -> Float[Tensor, "*rows m"]:
        """argmin_v ||v - u||^2 / 2 + step * f(v; y): what primal-dual solvers need.

        Raises:
            NotImplementedError: not known for this datafit.
        """
        raise NotImplementedError
