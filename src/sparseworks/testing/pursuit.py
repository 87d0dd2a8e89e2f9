"""What every coder with a budget of atoms must do: `check_pursuit`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparseworks.core.budget import Count
from sparseworks.core.config import from_config, to_config
from sparseworks.core.errors import KernelError, NonFiniteError
from sparseworks.solve.coder import CODERS, Coder, Solution
from sparseworks.solve.coders import OMP
from sparseworks.solve.maps import Cosine, Scaled
from sparseworks.testing.examples import require


def check_pursuit(coder: Coder | str, *, rounds: int = 2000) -> None:
    """Raise AssertionError unless a coder that takes `budget=Count(k)` is a pursuit.

    At most k atoms a signal; planted codes well inside the limit of recovery are found; the residual is orthogonal to the atoms chosen;
    signals that are met exactly, zeros and repeated atoms do no harm; a batch is as its signals; float32 as float64; NaN is refused; maps
    that it cannot use are refused in a sentence, others give what the matrix gives; a recipe brings it back. `OMP` equals scikit-learn's.

    Args:
        coder: the coder, or its registered name.
        rounds: for coders that converge slowly.
    """
    base: Any = CODERS.get(coder)() if isinstance(coder, str) else coder
    if getattr(base, "rounds", rounds) < rounds:
        base = replace(base, rounds=rounds)
    name = type(base).__name__
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.float32, 3e-3)):
        d, z, y = planted(dtype=dtype)
        _check_recovery(replace(base, budget=Count(4)), name, d, z, y, tolerance)
        _check_orthogonal(replace(base, budget=Count(5)), name, d, y, tolerance)
        _check_degenerate(replace(base, budget=Count(3)), name, d, tolerance)
    d, z, y = planted()
    _check_batch(replace(base, budget=Count(4)), name, d, y)
    _check_refusals(base, name, d, y)
    if isinstance(base, OMP):
        check_equals_scikit_learn(base, d, y)
    base = replace(base, budget=Count(3))
    require(from_config("coder", to_config(base)) == base, f"{name}: its recipe does not bring it back.")


def planted(
    signals: int = 12,
    atoms: int = 96,
    features: int = 48,
    k: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """A Gaussian dictionary of unit atoms, codes with k entries of 1..2 in modulus, and their signals."""
    draw = torch.Generator().manual_seed(seed)
    d = torch.nn.functional.normalize(torch.randn(atoms, features, generator=draw, dtype=torch.float64), dim=1)
    at = torch.rand(signals, atoms, generator=draw).argsort(1)[:, :k]
    size = 1 + torch.rand(signals, k, generator=draw, dtype=torch.float64)
    sign = torch.randint(0, 2, (signals, k), generator=draw) * 2 - 1
    z = torch.zeros(signals, atoms, dtype=torch.float64).scatter(1, at, size * sign)
    return d.to(dtype), z.to(dtype), (z @ d).to(dtype)


def check_equals_scikit_learn(coder: OMP, d: Tensor, y: Tensor) -> None:
    """The same atoms as scikit-learn's pursuit for a count and for a residual, and the same values."""
    from sklearn.linear_model import orthogonal_mp

    y = y + 0.3 * torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)
    for k in (1, 3, 9):
        expected = torch.from_numpy(orthogonal_mp(d.T.numpy(), y.T.numpy(), n_nonzero_coefs=k)).T
        ours = replace(coder, budget=Count(k))(d, y).z
        require(
            bool(((ours != 0) == (expected != 0)).all()), f"OMP takes other atoms than scikit-learn's, {k} a signal."
        )
        require(float((ours - expected).abs().max()) < 1e-8, "OMP gives other values than scikit-learn's.")


def _residual(d: Tensor, y: Tensor, found: Solution) -> Tensor:
    return (y - found.z @ d).norm(dim=1) / y.norm(dim=1).clamp(min=1e-30)


def _check_recovery(coder: Any, name: str, d: Tensor, z: Tensor, y: Tensor, tolerance: float) -> None:
    found = coder(d, y)
    error = float(((found.z - z).norm(dim=1) / z.norm(dim=1)).max())
    require(
        error <= tolerance, f"{name}: planted codes with 4 of 96 atoms in 48 features come back with error {error}."
    )
    require(found.z.dtype == d.dtype, f"{name}: codes of {d.dtype} signals are {found.z.dtype}.")
    require(int((found.z != 0).sum(1).max()) <= 4, f"{name}: more atoms than the budget.")
    require(bool(found.converged.all()), f"{name}: it found the codes, and does not say so.")
    require(bool((found.steps > 0).all()), f"{name}: steps are not counted.")


def _check_orthogonal(coder: Any, name: str, d: Tensor, y: Tensor, tolerance: float) -> None:
    y = y + 0.2 * torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(y.dtype)
    found = coder(d, y)
    along = ((y - found.z @ d) @ d.T).masked_fill(found.z == 0, 0).abs().amax(1) / y.norm(dim=1)
    require(float(along.max()) <= tolerance, f"{name}: the residual leans on the atoms chosen by {float(along.max())}.")
    require(bool((_residual(d, y, found) < 1).all()), f"{name}: codes of noisy signals explain nothing.")


def _check_degenerate(coder: Any, name: str, d: Tensor, tolerance: float) -> None:
    d = d.clone()
    d[7] = d[3]
    y = torch.stack([2 * d[11], torch.zeros_like(d[0]), d[3] - 2 * d[20]])
    found = coder(d, y)
    require(bool(torch.isfinite(found.z).all()), f"{name}: a repeated atom gives codes that are not finite.")
    require(float(found.z.abs().max()) < 10, f"{name}: a repeated atom blows the codes up.")
    require(not bool(found.z[1].any()), f"{name}: a signal of zeros gets atoms.")
    left = float(_residual(d, y, found)[[0, 2]].max())
    require(left <= tolerance, f"{name}: of signals of one and two atoms {left} is left.")
    require(bool(found.converged.all()), f"{name}: a signal that is met exactly does not count as done.")
    extra = found.z[0].clone()
    extra[11] = 0
    require(float(extra.abs().max()) <= tolerance, f"{name} goes on after a signal was met exactly.")


def _check_batch(coder: Any, name: str, d: Tensor, y: Tensor) -> None:
    y = y + 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=y.dtype)
    both = coder(d, y).z
    for i in range(len(y)):
        alone = coder(d, y[i : i + 1]).z[0]
        require(
            float((alone - both[i]).abs().max()) < 1e-5, f"{name}: signal {i} alone has another code than in its batch."
        )
    require(coder(d, y[:0]).z.shape == (0, len(d)), f"{name}: no signals should give no codes.")


def _check_refusals(base: Any, name: str, d: Tensor, y: Tensor) -> None:
    bad = y.clone()
    bad[2, 3] = torch.nan
    try:
        base(d, bad)
    except NonFiniteError:
        pass
    else:
        raise AssertionError(f"{name} takes NaN.")
    fast = Scaled(Cosine((32,), torch.float64), 0.5)
    codes = torch.zeros(2, 32, dtype=torch.float64)
    codes[0, 5], codes[1, 9] = 2.0, -1.0
    coder = replace(base, budget=Count(2))
    if coder.refuses(fast) is None:
        error = float((coder(fast, fast(codes)).z - codes).abs().max())
        require(error < 1e-3, f"{name}: with a map that is no matrix codes are off by {error}.")
        return
    try:
        coder(fast, fast(codes))
    except KernelError as refusal:
        require(str(refusal).endswith("."), f"{name} refuses without a sentence: {refusal}")
    else:
        raise AssertionError(f"{name} says that it refuses a map, and takes it.")
