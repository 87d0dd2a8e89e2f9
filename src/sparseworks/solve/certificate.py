"""How good codes are known to be: a duality gap where both conjugates are known, the violation of the optimality condition elsewhere."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sparseworks.solve.datafit import Datafit
from sparseworks.solve.linear import LinearMap
from sparseworks.solve.penalty import Penalty


def certify(
    a: LinearMap,
    datafit: Datafit,
    penalty: Penalty,
    z: Shaped[Tensor, "rows *domain"],
    y: Shaped[Tensor, "rows *codomain"],
) -> tuple[Float[Tensor, " rows"], str]:
    """A number a row that is 0 at an optimum, without a unit, and what it is.

    "duality gap": [f(Az) + g(z) + f*(v) + g*(-A* v)] / f(0) with v = s grad f(Az), s <= 1 what makes -A* v dual feasible;
    the cost is above the optimum by that share of f(0) at most. "violation": the largest violation, as a share of the
    largest gradient at 0.
    """
    u = a.forward(z)
    slope = _flat(datafit.gradient(_flat(u), _flat(y)))
    back = a.adjoint(slope.reshape(u.shape))
    correlation, codes = _flat(back), _flat(z)
    try:
        return duality_gap(datafit, penalty, codes, _flat(u), _flat(y), slope, correlation), "duality gap"
    except NotImplementedError:
        pass
    zero = torch.zeros_like(_flat(u))
    first = a.adjoint(datafit.gradient(zero, _flat(y)).reshape(u.shape))
    scale = _flat(first).abs().amax(-1).clamp(min=torch.finfo(correlation.real.dtype).tiny)
    return penalty.violation(codes, correlation).amax(-1) / scale, "violation"


def duality_gap(
    datafit: Datafit,
    penalty: Penalty,
    z: Float[Tensor, "rows n"],
    u: Float[Tensor, "rows m"],
    y: Float[Tensor, "rows m"],
    slope: Float[Tensor, "rows m"],
    correlation: Float[Tensor, "rows n"],
) -> Float[Tensor, " rows"]:
    """The gap as `certify` has it, from products that are known: u = A z, slope = grad f(u), correlation = A* slope.

    Raises:
        NotImplementedError: a conjugate is not known.
    """
    scale = torch.ones_like(correlation[..., 0].real)
    polar = penalty.conjugate(-correlation)
    if bool(polar.isinf().any()):
        shrunk = 1 / penalty.largest(correlation).clamp(min=1)
        scale = torch.where(polar.isinf(), shrunk, scale)
        polar = penalty.conjugate(-correlation * scale.unsqueeze(-1))
    dual = datafit.conjugate(slope * scale.unsqueeze(-1), y) + polar
    least = torch.finfo(scale.dtype).tiny
    return (datafit.value(u, y) + penalty.value(z) + dual).clamp(min=0) / datafit.value(torch.zeros_like(u), y).clamp(
        min=least
    )


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1)
