"""What every penalty must hold."""

from __future__ import annotations

import cmath

import torch
from torch import Tensor

from sparseworks.codes.method import CodeMethod  # noqa: F401  files penalties under the nouns of recipes
from sparseworks.core.config import from_config, to_config
from sparseworks.solve.penalty import Penalty
from sparseworks.testing.examples import example, require

_N = 6
_STEPS = (0.3, 1.0, 2.5)


def check_penalty(penalty: type[Penalty] | Penalty) -> None:
    """The proximal map is the minimiser, whatever one starts from; value, conjugate, violation and largest belong to it.

    Codes have six coordinates: a penalty with fields of a fixed length has a class method `example()` of that length.

    Raises:
        AssertionError: with a sentence that names the penalty and what broke.
    """
    subject: Penalty = example(penalty)
    name = type(subject).__name__
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(12, _N, generator=generator, dtype=torch.float64) * torch.logspace(-1, 0.7, 12).double()[:, None]
    for step in _STEPS:
        _minimises(subject, name, v, step, generator)
    _rows_apart(subject, name, v)
    _convexity(subject, name, v)
    _moreau(subject, name, v)
    _optimality(subject, name, generator)
    _largest(subject, name, v)
    if subject.complex_valued:
        _phases(subject, name, v)
    if hasattr(subject, "registered_name"):
        require(from_config("penalty", to_config(subject)) == subject, f"{name} does not come back from plain data.")


def _cost(subject: Penalty, u: Tensor, v: Tensor, step: float) -> Tensor:
    return (u - v).square().sum(-1) / 2 + step * subject.value(u)


def _minimises(subject: Penalty, name: str, v: Tensor, step: float, generator: torch.Generator) -> None:
    found = subject.prox(v, step)
    require(found.shape == v.shape and found.dtype == v.dtype, f"The prox of {name} changes shape or type.")
    best = _cost(subject, found, v, step)
    require(bool(best.isfinite().all()), f"The prox of {name} leaves the domain of its value.")
    for start in (torch.zeros_like(v), v, v / 2, torch.randn(v.shape, generator=generator, dtype=v.dtype)):
        other = _descend(subject, start, v, step, generator)
        worse = _cost(subject, other, v, step) < best - 1e-9 * (1 + best.abs())
        require(not bool(worse.any()), f"{name} has a better point than its prox with step {step}.")
    if subject.separable:
        _scan(subject, name, v, step, found)


def _descend(subject: Penalty, u: Tensor, v: Tensor, step: float, generator: torch.Generator) -> Tensor:
    """Random search with shrinking moves, along single coordinates and along all."""
    cost = _cost(subject, u, v, step)
    for i in range(150):
        move = torch.randn(u.shape, generator=generator, dtype=u.dtype) * 0.93**i
        if i % 2:
            move = move * (torch.arange(_N) == i // 2 % _N)
        tried = u + move
        new = _cost(subject, tried, v, step)
        u, cost = torch.where((new < cost).unsqueeze(-1), tried, u), torch.minimum(new, cost)
    return u


def _scan(subject: Penalty, name: str, v: Tensor, step: float, found: Tensor) -> None:
    """Every coordinate on a grid, with 0, v and what was found among its points."""
    grid = torch.linspace(-1, 1, 401, dtype=v.dtype)
    for i in range(_N):
        tried = found.unsqueeze(1).repeat(1, len(grid) + 1, 1)
        tried[:, :-1, i] = grid * (v[:, i : i + 1].abs() + 0.5)
        tried[:, -1, i] = v[:, i]
        costs = _cost(subject, tried, v.unsqueeze(1), step)
        best = _cost(subject, found, v, step).unsqueeze(1)
        require(
            not bool((costs < best - 1e-9 * (1 + best.abs())).any()),
            f"Coordinate {i} of {name}'s prox with step {step} is not the minimiser of its own problem.",
        )


def _rows_apart(subject: Penalty, name: str, v: Tensor) -> None:
    steps = torch.linspace(0.2, 2, len(v), dtype=v.dtype).unsqueeze(1)
    together = subject.prox(v, steps)
    apart = torch.stack([subject.prox(row, float(s)) for row, s in zip(v, steps, strict=True)])
    require(torch.allclose(together, apart, atol=1e-12), f"A row of {name}'s prox depends on the other rows.")
    value, each = subject.value(v), torch.stack([subject.value(row) for row in v])
    require(torch.equal(value.isinf(), each.isinf()), f"A row of {name}'s value depends on the other rows.")
    require(torch.allclose(value, each), f"A row of {name}'s value depends on the other rows.")


def _convexity(subject: Penalty, name: str, v: Tensor) -> None:
    if not subject.convex:
        return
    for step in _STEPS:
        moved = subject.prox(v, step) - subject.prox(v.flip(0), step)
        apart = torch.linalg.vector_norm(v - v.flip(0), dim=-1)
        far = torch.linalg.vector_norm(moved, dim=-1) > apart * (1 + 1e-9)
        require(not bool(far.any()), f"{name} says it is convex, but its prox moves points apart.")
    ends, middle = subject.value(v) + subject.value(v.flip(0)), subject.value((v + v.flip(0)) / 2)
    require(bool((2 * middle <= ends + 1e-9 * (1 + ends.abs())).all()), f"{name} says it is convex, but it is not.")


def _moreau(subject: Penalty, name: str, v: Tensor) -> None:
    """With p = prox(v, 1) and q = v - p a subgradient at p: g(p) + g*(q) = <p, q>."""
    p = subject.prox(v, 1.0)
    try:
        conjugate = subject.conjugate(v - p)
    except NotImplementedError:
        return
    gap = subject.value(p) + conjugate - (p * (v - p)).sum(-1)
    require(bool((gap.abs() <= 1e-8 * (1 + v.square().sum(-1))).all()), f"Value and conjugate of {name} do not meet.")
    young = subject.value(p) + subject.conjugate((v - p).flip(0)) - (p * (v - p).flip(0)).sum(-1)
    require(bool((young >= -1e-8).all()), f"The conjugate of {name} is below <z, v> - g(z) somewhere.")


def _optimality(subject: Penalty, name: str, generator: torch.Generator) -> None:
    """Proximal gradient on a small least-squares problem ends where the violation is 0, and nowhere near by."""
    a = torch.randn(20, _N, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 20, generator=generator, dtype=torch.float64) * 3
    step = 1 / float(torch.linalg.matrix_norm(a, 2)) ** 2
    z = torch.zeros(3, _N, dtype=torch.float64)
    for _ in range(1500):
        z = subject.prox(z - step * (z @ a.T - y) @ a, step)
    violation = subject.violation(z, (z @ a.T - y) @ a)
    require(violation.shape == z.shape, f"The violation of {name} is not one number a coordinate.")
    require(
        bool((violation <= 1e-6).all()),
        f"{name} has a violation of {float(violation.max()):.2g} at a stationary point.",
    )
    near = subject.prox(z + 0.3 * torch.randn(z.shape, generator=generator, dtype=z.dtype), 1e-9)
    off = subject.violation(near, (near @ a.T - y) @ a)
    require(bool((off.amax(-1) > 1e-4).all()), f"{name} sees no violation away from a stationary point.")


def _largest(subject: Penalty, name: str, v: Tensor) -> None:
    gradient = v - v.mean(-1, keepdim=True)  # so that penalties that leave constants free have a largest factor too
    try:
        largest = subject.largest(gradient)
    except NotImplementedError:
        return
    known = largest.isfinite() & (largest > 0)
    step = 1e-3  # a small one, so that of a penalty that is not convex only the slope at 0 counts
    factor = torch.where(known, largest, 1).unsqueeze(-1)
    above = subject.prox(-step * gradient, step * factor * (1 + 1e-9))
    require(bool((above[known].abs() <= 1e-9).all()), f"From `largest` on, 0 is not optimal for {name}.")
    if subject.convex:
        below = subject.prox(-step * gradient, step * factor * 0.99)
        require(bool((below[known] != 0).any(-1).all()), f"0 is optimal for {name} below `largest` too.")


def _phases(subject: Penalty, name: str, v: Tensor) -> None:
    turn = cmath.exp(0.7j)
    z = torch.complex(v, v.flip(0))
    require(
        torch.allclose(subject.prox(z * turn, 0.8), subject.prox(z, 0.8) * turn, atol=1e-10),
        f"The prox of {name} does not turn with complex codes.",
    )
    require(torch.allclose(subject.value(z * turn), subject.value(z)), f"The value of {name} depends on phases.")
