"""What every solver must hold."""

from __future__ import annotations

import torch

from sparseworks.core.pattern import Pattern
from sparseworks.core.patterns import EXAMPLES
from sparseworks.core.solver import Solver, masked
from sparseworks.core.stats import Gram, Stats
from sparseworks.scores import Magnitude
from sparseworks.testing.examples import example, gathered, random_weight, require
from sparseworks.testing.repair import output_error

SHAPE = (8, 16)


def check_solver(solver: type[Solver] | Solver) -> None:
    """For every kind of pattern: the exact count, a support the pattern admits, exact zeros outside, no loss over masking.

    Raises:
        AssertionError: with a sentence that names the solver and what broke.
    """
    subject: Solver = example(solver)
    for text in EXAMPLES:
        pattern = Pattern.parse(text)
        for density in (0.0, 0.5, 1.0) if pattern.fixed_density is None else (pattern.fixed_density,):
            _one(subject, pattern, density)


def _one(solver: Solver, pattern: Pattern, density: float) -> None:
    what = f"{type(solver).__name__} with {pattern} at density {density:g}"
    stats: Stats = gathered(solver.needs | {Gram}, SHAPE)
    weight, keep = random_weight(*SHAPE), pattern.counts(SHAPE, density)
    before = weight.clone()
    new, support = solver(weight, stats, Magnitude(), pattern, keep)
    require(torch.equal(weight, before), f"{what} changes the weight it was given.")
    require(new.shape == weight.shape and new.dtype == weight.dtype, f"{what} gives {new.dtype} {tuple(new.shape)}.")
    require(bool(torch.isfinite(new).all()), f"{what} gives NaN or infinity.")
    require(not bool(new[~support.mask()].any()), f"{what} leaves values outside the support.")
    require(pattern.admits(support), f"{what} gives a support that the pattern does not admit.")
    expected = round(density * weight.numel())
    require(support.count == expected, f"{what} keeps {support.count} entries, not {expected}.")
    bias = solver.bias(weight, new, stats)
    error = float(output_error(weight, new, stats, bias).sum())
    plain = float(output_error(weight, masked(weight, support), stats).sum())
    require(error <= plain * (1 + 1e-4) + 1e-6, f"{what} is worse than masking with its own support.")
    again, support_again = solver(weight, stats, Magnitude(), pattern, keep)
    require(support_again == support and torch.equal(again, new), f"{what} gives another result when called again.")
