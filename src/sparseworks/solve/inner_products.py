"""Penalised quadratics by coordinate descent, on inner products or on a residual: compiled where it can be, in torch elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.exec.codes import can_descend, descend, descend_columns
from sparseworks.solve.penalties import L1, MCP, ElasticNet, NonNegativeL1, WeightedL1
from sparseworks.solve.penalty import Penalty


def descend_quadratic(
    gram: Float[Tensor, "n n"],
    right: Float[Tensor, "rows n"],
    penalty: Penalty,
    start: Float[Tensor, "rows n"],
    tolerance: Float[Tensor, " rows"],
    passes: int,
) -> tuple[Float[Tensor, "rows n"], Int[Tensor, " rows"]]:
    """argmin_z z G z / 2 - <right, z> + g(z) of every row, to a violation of `tolerance`, and the passes it took.

    g is separable. Where it is not convex the point is one that no single coordinate can improve.
    """
    compiled = _compiled(penalty, gram.diagonal()) if can_descend(gram) else None
    if compiled is None:
        return _reference(gram, right, penalty, start, tolerance, passes)
    slopes, options = compiled
    scale = gram.new_ones(len(right))
    return descend(gram, right, slopes, scale, start, tolerance, passes, **options)


def descend_residual(
    atoms: Float[Tensor, "all features"],
    kept: Int[Tensor, " n"],
    residual: Float[Tensor, " features"],
    curvature: Float[Tensor, " n"],
    penalty: Penalty,
    start: Float[Tensor, " n"],
    goal: float,
    most: int,
) -> tuple[Float[Tensor, " n"], int, bool]:
    """argmin_z ||y - z D||^2 / 2 + g(z), D = atoms[kept], without inner products.

    Returns z, how many atoms it looked at (about `most` at most), and whether that was enough. Nothing moves where it is not compiled. `residual` is y - start D, `curvature` the atoms' squared norms.
    """
    compiled = _compiled(penalty, curvature) if can_descend(atoms) else None
    if compiled is None:
        return start, 0, False
    slopes, options = compiled
    return descend_columns(atoms, kept, residual, slopes, curvature, start, goal, most, **options)


def _compiled(penalty: Penalty, like: Tensor) -> tuple[Tensor, dict[str, Any]] | None:
    """Slopes at 0 and options of the kernels for as many coordinates as `like` has; None where they do not know the penalty."""
    if type(penalty) is L1:
        return like.new_full(like.shape, penalty.weight), {}
    if type(penalty) is WeightedL1:
        return penalty.each(like), {}
    if type(penalty) is NonNegativeL1:
        return like.new_full(like.shape, penalty.weight), {"kind": "non_negative"}
    if type(penalty) is ElasticNet:
        ridge = penalty.weight * (1 - penalty.share)
        return like.new_full(like.shape, penalty.weight * penalty.share), {"ridge": ridge}
    if type(penalty) is MCP:
        return like.new_full(like.shape, penalty.weight), {"kind": "mcp", "gamma": penalty.gamma}
    return None


def _reference(
    gram: Tensor, right: Tensor, penalty: Penalty, start: Tensor, tolerance: Tensor, passes: int
) -> tuple[Tensor, Tensor]:
    """One coordinate of all rows at a time; rows that are done leave."""
    z, steps = start.clone(), torch.zeros(len(right), dtype=torch.long, device=right.device)
    curvature = gram.diagonal()
    order = (curvature > 0).nonzero()[:, 0].tolist()
    alive = torch.arange(len(right), device=right.device)
    for done in range(passes + 1):
        x = z[alive]
        gradient = x @ gram - right[alive]
        on = penalty.violation(x, gradient).amax(-1) > tolerance[alive]
        alive, x, gradient = alive[on], x[on], gradient[on]
        if not len(alive) or done == passes:
            break
        for j in order:
            own = _coordinate(penalty, j)
            step = 1 / float(curvature[j])
            new = own.prox(x[:, j : j + 1] - step * gradient[:, j : j + 1], step)
            moved = new[:, 0] - x[:, j]
            x[:, j] = new[:, 0]
            gradient += moved.unsqueeze(1) * gram[j]
        z[alive], steps[alive] = x, done + 1
    return z, steps


def _coordinate(penalty: Penalty, j: int) -> Penalty:
    """The penalty of one coordinate."""
    return replace(penalty, weights=(penalty.weights[j],)) if isinstance(penalty, WeightedL1) else penalty


def restrict(penalty: Penalty, kept: Int[Tensor, " k"]) -> Penalty:
    """The penalty on some of the coordinates, for working sets."""
    if isinstance(penalty, WeightedL1):
        return replace(penalty, weights=tuple(penalty.weights[i] for i in kept.tolist()))
    return penalty
