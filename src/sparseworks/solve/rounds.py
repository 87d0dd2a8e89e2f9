"""The loop that iterative coders share: rows that are done leave the batch, the others go on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sparseworks.solve.coder import Solution

State = dict[str, Tensor]
Certify = Callable[[Tensor, Tensor], tuple[Float[Tensor, " rows"], str]]


def rounds(
    state: State,
    signals: Shaped[Tensor, "rows *codomain"],
    step: Callable[[State, Tensor], State],
    certify: Certify,
    *,
    iterations: int,
    every: int,
    tolerance: float,
) -> Solution:
    """`state = step(state, signals)` until the certificate of every row is at most `tolerance`, or `iterations` are over.

    Args:
        state: tensors with a row a signal; "z" are the codes.
        certify: (codes, signals) -> a number a row, and what it proves; asked before the first iteration and `every` so many.
    """
    z = state["z"].clone()
    number, proves = certify(z, signals)
    steps = torch.zeros(len(z), dtype=torch.long, device=z.device)
    alive = (~(number <= tolerance)).nonzero()[:, 0]
    state, left = {k: v[alive] for k, v in state.items()}, signals[alive]
    done = 0
    while done < iterations and len(alive):
        for _ in range(min(every, iterations - done)):
            state = step(state, left)
            done += 1
        z[alive], steps[alive] = state["z"], done
        number[alive], proves = certify(state["z"], left)
        on = ~(number[alive] <= tolerance)
        if not bool(on.all()):
            alive, left = alive[on], left[on]
            state = {k: v[on] for k, v in state.items()}
    return Solution(z, steps, number, number <= tolerance, proves)


def spread(x: Float[Tensor, " rows"], like: Tensor) -> Tensor:
    """(rows,) as (rows, 1, ..., 1) beside `like`."""
    return x.reshape(-1, *(1,) * (like.dim() - 1))
