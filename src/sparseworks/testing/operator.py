"""What every linear map must hold: `check_operator`, and a small example of each that is registered."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.solve.linear import LinearMap
from sparseworks.solve.maps import (
    Adjoint,
    Atoms,
    Composed,
    Convolution,
    Cosine,
    Differences,
    Fourier,
    Sampled,
    Scaled,
    ShortTime,
)
from sparseworks.testing.examples import require


def _random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


OPERATORS: dict[str, Callable[[torch.dtype], LinearMap]] = {
    "atoms": lambda t: Atoms(_random(7, 5, dtype=t)),
    "composed": lambda t: Composed(Sampled(_random(9, dtype=t) > 0, t), Atoms(_random(6, 9, dtype=t))),
    "adjoint": lambda t: Adjoint(Fourier(9, 2, t)),
    "scaled": lambda t: Scaled(Atoms(_random(7, 5, dtype=t)), -1.5),
    "sampled": lambda t: Sampled(_random(4, 5, dtype=t) > 0.2, t),
    "convolution": lambda t: Convolution(_random(3, 4, dtype=t), (7, 6), circular=False),
    "differences": lambda t: Differences((4, 5, 3), (0, 2), t),
    "cosine": lambda t: Cosine((5, 8), t),
    "fourier": lambda t: Fourier(11, 2, t),
    "short_time_fourier": lambda t: ShortTime(50, 16, 4, 1, t),
}
"""Name of a registered map -> a small one of a given real dtype; add yours here to have it tested with all others."""


def check_operator(make: str | Callable[[torch.dtype], LinearMap]) -> None:
    """Raise AssertionError unless what `make(dtype)` gives is a linear map with its adjoint, in float32 and float64.

    The dot test Re<A z, u> = Re<z, A* u>; linearity; the norm; the gradient of forward is the adjoint and the other way round; a batch
    is as its elements; dtypes as declared; operands are not changed; NaN comes through; another shape is refused.

    Args:
        make: a name of `OPERATORS`, or a function from a real dtype to a map.
    """
    build = OPERATORS[make] if isinstance(make, str) else make
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        a = build(dtype)
        name = type(a).__name__
        z, u = draw(a.domain, a.dtype, 3), draw(a.codomain, a.output_dtype or a.dtype, 4)
        before = z.clone(), u.clone()
        _check_linear(a, name, z, u, tolerance)
        _check_gradients(a, name, z, u, tolerance)
        _check_norm(a, name)
        require(torch.equal(before[0], z) and torch.equal(before[1], u), f"{name} changes its operands.")
    _check_refusals(a, name, z)


def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int, batch: tuple[int, ...] = (2, 3)) -> Tensor:
    """A Gaussian batch of elements of that shape."""
    return torch.randn(*batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b.conj()).sum().real


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


def _check_linear(a: LinearMap, name: str, z: Tensor, u: Tensor, tolerance: float) -> None:
    forward, adjoint = a(z), a.adjoint(u)
    require(forward.shape == u.shape and forward.dtype == u.dtype, f"{name}: A z is {forward.dtype} {forward.shape}.")
    require(adjoint.shape == z.shape and adjoint.dtype == z.dtype, f"{name}: A* u is {adjoint.dtype} {adjoint.shape}.")
    dot = (_inner(forward, u) - _inner(z, adjoint)).abs()
    require(float(dot) <= tolerance * float(forward.norm() * u.norm()), f"{name}: the dot test is off by {float(dot)}.")
    require(_close(a(2 * z - z.flip(0)), 2 * forward - forward.flip(0), tolerance), f"{name} is not linear.")
    require(_close(a.normal(z), a.adjoint(forward), tolerance), f"{name}: normal is not A* A.")
    require(_close(a(z[1, 2]), forward[1, 2], tolerance), f"{name}: a batch is not as its elements.")
    require(_close(a.mT.mT @ z, forward, tolerance), f"{name}: the adjoint of the adjoint is another map.")


def _check_gradients(a: LinearMap, name: str, z: Tensor, u: Tensor, tolerance: float) -> None:
    leaf = z.clone().requires_grad_()
    (back,) = torch.autograd.grad(a(leaf), leaf, u)
    require(_close(back, a.adjoint(u), tolerance), f"{name}: the gradient of forward is not the adjoint.")
    leaf = u.clone().requires_grad_()
    (back,) = torch.autograd.grad(a.adjoint(leaf), leaf, z)
    require(_close(back, a(z), tolerance), f"{name}: the gradient of the adjoint is not forward.")


def _check_norm(a: LinearMap, name: str) -> None:
    found, power = a.squared_norm(), LinearMap.squared_norm(a, rounds=2000, tolerance=1e-9)
    require(abs(found - power) <= 1e-2 * power, f"{name}: squared norm {found}, by power iteration {power}.")


def _check_refusals(a: LinearMap, name: str, z: Tensor) -> None:
    bad = z.clone()
    bad.view(-1)[0] = torch.nan
    seen = torch.isnan(a(bad).abs()).any() or torch.equal(torch.nan_to_num(bad), bad)
    blind = float(a(torch.where(torch.isnan(bad.abs()), 1.0, 0.0).to(z.dtype)).abs().max()) == 0
    require(bool(seen) or blind, f"{name}: NaN is lost on the way.")
    try:
        a(z[..., :-1])
    except ShapeError:
        return
    raise AssertionError(f"{name} takes an element of another shape.")
