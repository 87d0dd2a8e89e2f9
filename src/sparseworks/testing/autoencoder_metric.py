"""What every metric of autoencoders must hold."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseworks.codes.autoencoders.metrics import Metric
from sparseworks.core.codes import Codes
from sparseworks.core.errors import CalibrationError
from sparseworks.testing.examples import require

ROWS, WIDTH, FEATURES = 48, 12, 6


def check_metric(metric: type[Metric]) -> None:
    """No value without tokens; the same for any cut into batches, any order of tokens, any float type that holds the numbers exactly.

    Raises:
        AssertionError: with a sentence that names the metric and what broke.
    """
    name = metric.__name__
    try:
        metric().value()
    except CalibrationError:
        pass
    else:
        raise AssertionError(f"{name} has a value though nothing was added.")
    for offset in (0, 512):  # a mean far from 0 must cost no digits
        y, rebuilt, codes = _example(offset)
        whole = _of(metric, y, rebuilt, codes, [ROWS])
        require(whole.dtype == torch.float64, f"{name} is {whole.dtype}, not float64.")
        for cut in ([1, 17, 30], [20, 0, 28], [1] * ROWS):
            require(
                torch.allclose(_of(metric, y, rebuilt, codes, cut), whole, atol=1e-10), f"{name} depends on batches."
            )
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
        mixed = Codes(codes.values[order], codes.indices[order], WIDTH)
        again = _of(metric, y[order], rebuilt[order], mixed, [ROWS])
        require(torch.allclose(again, whole, atol=1e-10), f"{name} depends on the order of tokens.")
        for dtype in (torch.float64, torch.bfloat16) if not offset else (torch.float64,):
            cast = Codes(codes.values.to(dtype), codes.indices, WIDTH)
            other = _of(metric, y.to(dtype), rebuilt.to(dtype), cast, [ROWS])
            require(torch.allclose(other, whole, atol=1e-10), f"{name} differs in {dtype}.")


def _example(offset: int) -> tuple[Tensor, Tensor, Codes]:
    """Numbers that bfloat16 holds exactly; one latent is never on, one entry is kept at 0."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(-8, 9, (ROWS, FEATURES), generator=g).float() / 4 + offset
    rebuilt = y + torch.randint(-2, 3, (ROWS, FEATURES), generator=g).float() / 4
    indices = torch.stack([torch.randperm(WIDTH - 1, generator=g)[:3] for _ in range(ROWS)])
    values = torch.randint(1, 5, (ROWS, 3), generator=g).float()
    values[::7, 2] = 0
    return y, rebuilt, Codes(values, indices, WIDTH)


def _of(metric: type[Metric], y: Tensor, rebuilt: Tensor, codes: Codes, cut: list[int]) -> Tensor:
    made = metric()
    for a, b, v, i in zip(
        y.split(cut), rebuilt.split(cut), codes.values.split(cut), codes.indices.split(cut), strict=True
    ):
        made.add(a, b, Codes(v, i, WIDTH))
    return made.value()
