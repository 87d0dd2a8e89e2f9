"""What every repair must hold."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseworks.core.solver import Repair, masked
from sparseworks.core.stats import Gram, Stats
from sparseworks.core.support import Support
from sparseworks.testing.examples import example, gathered, random_weight, require

ROWS, COLS = 6, 16


def supports(rows: int = ROWS, cols: int = COLS) -> dict[str, Support]:
    """Supports that tend to break things: empty and full rows, columns and matrices, very different row counts."""
    g = torch.Generator().manual_seed(0)
    half = torch.rand(rows, cols, generator=g) < 0.5
    some_rows, some_cols = half.clone(), half.clone()
    some_rows[::2], some_cols[:, ::3] = False, False
    full_row = half.clone()
    full_row[0] = True
    ragged = torch.arange(cols).unsqueeze(0) < torch.arange(rows).unsqueeze(1)
    masks = {
        "half": half,
        "empty rows": some_rows,
        "empty columns": some_cols,
        "a full row": full_row,
        "ragged": ragged,
    }
    made = {name: Support.from_mask(mask) for name, mask in masks.items()}
    return made | {"empty": Support.empty((rows, cols)), "full": Support.full((rows, cols))}


def check_repair(repair: type[Repair] | Repair) -> None:
    """Exact zeros outside the support, never a larger calibrated error than masking, full supports left alone, purity.

    Raises:
        AssertionError: with a sentence that names the repair and what broke.
    """
    subject: Repair = example(repair)
    name = type(subject).__name__
    stats = gathered(subject.needs | {Gram}, (ROWS, COLS))
    for dtype in (torch.float32, torch.float64):
        for which, support in supports().items():
            _one(
                subject,
                f"{name} on a support with {which} ({dtype})",
                random_weight(ROWS, COLS, dtype=dtype),
                support,
                stats,
            )
    empty = subject(torch.zeros(0, COLS), Support.empty((0, COLS)), gathered(subject.needs, (0, COLS)))
    require(empty.shape == (0, COLS), f"{name} fails on a weight without rows.")


def _one(repair: Repair, what: str, weight: Tensor, support: Support, stats: Stats) -> None:
    before = weight.clone()
    new = repair(weight, support, stats)
    bias = repair.bias(weight, new, stats)
    require(torch.equal(weight, before), f"{what} changes the weight it was given.")
    require(new.shape == weight.shape and new.dtype == weight.dtype, f"{what} gives {new.dtype} {tuple(new.shape)}.")
    require(bool(torch.isfinite(new).all()), f"{what} gives NaN or infinity.")
    require(not bool(new[~support.mask()].any()), f"{what} leaves values outside the support.")
    require(bias is None or bias.shape == (weight.shape[0],), f"{what} gives a bias that is not one number a row.")
    error, plain = output_error(weight, new, stats, bias), output_error(weight, masked(weight, support), stats)
    worse = error > plain * (1 + 1e-4) + 1e-6
    require(not bool(worse.any()), f"{what} raises the calibrated error of a row.")
    if support.count == support.size:
        require(torch.allclose(new, weight, rtol=1e-3, atol=1e-3), f"{what} changes a weight that loses nothing.")
    require(torch.equal(repair(weight, support, stats), new), f"{what} gives other values when called again.")


def output_error(old: Tensor, new: Tensor, stats: Stats, bias: Tensor | None = None) -> Tensor:
    """E|(W' - W) x + b|^2 of every row over the calibration inputs, `(rows,)`."""
    gram, change = stats[Gram], (new - old).double()
    error = gram.error(change)
    if bias is None:
        return error
    b = bias.double()
    return error + 2 * b * (change @ gram.mean) + b.square()
