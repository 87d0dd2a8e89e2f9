"""Orthogonal matching pursuit of many signals: ours beside scikit-learn's, from the signals to the codes.

Peers: `orthogonal_mp_gram` with inner products made in the call, as ours makes them, and `OrthogonalMatchingPursuit.fit` (precompute=True) with all
signals as targets. float32 for all. Supports are compared signal by signal, in float32 and in float64 (where no two correlations are so close
that rounding may choose between them). Pursuits are chains of small steps, so there is no simple ceiling.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import common

from sparseworks.core.budget import Count
from sparseworks.exec import measure
from sparseworks.solve.coders import OMP

SHAPES = [(512, 512, 64, 8), (512, 256, 64, 8), (256, 1024, 128, 16), (64, 2048, 256, 16)]
"""(signals, atoms, features, atoms a signal)"""


def main() -> None:
    given = common.arguments(__doc__ or "")
    lines, same = [], {}
    for shape in [(32, 64, 24, 4)] if given.quick else SHAPES:
        found, agreement = compare(*shape, given.rounds)
        lines += found
        same[found[0].case] = agreement
    common.show(lines, f"Orthogonal matching pursuit, {given.threads} threads")
    common.table(
        "Signals with the same support", ("case", "float32", "float64"), [(c, *map(str, s)) for c, s in same.items()]
    )
    common.store("pursuit", lines, given.json, same_support=same)


def compare(signals: int, atoms: int, features: int, k: int, rounds: int) -> tuple[list[common.Line], tuple[str, str]]:
    """Times beside each peer, and how many signals have the same support, in float32 and float64."""
    from sklearn.linear_model import OrthogonalMatchingPursuit

    d = F.normalize(torch.randn(atoms, features), dim=1)
    y = torch.randn(signals, features)
    columns, targets = d.T.contiguous().numpy(), y.T.contiguous().numpy()
    coder = OMP(Count(k))
    model = OrthogonalMatchingPursuit(n_nonzero_coefs=k, fit_intercept=False, precompute=True)
    runs: dict[str, Callable[[], object]] = {
        "OMP": lambda: coder(d, y),
        "orthogonal_mp_gram": lambda: theirs(columns, targets, k),
        "OrthogonalMatchingPursuit": lambda: model.fit(columns, targets),
    }
    timings = measure.compare(runs, rounds=rounds)
    case = f"{signals} signals, {k} of {atoms} in {features}"
    lines = [common.line(case, timings, "OMP", peer) for peer in list(runs)[1:]]
    wide = theirs(columns.astype(np.float64), targets.astype(np.float64), k)
    pairs = (coder(d, y).z, theirs(columns, targets, k)), (coder(d.double(), y.double()).z, wide)
    return lines, tuple(f"{int(((a != 0).numpy() == (b.T != 0)).all(1).sum())} of {signals}" for a, b in pairs)  # type: ignore[return-value]


def theirs(columns: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """scikit-learn's pursuit on inner products, codes in columns."""
    from sklearn.linear_model import orthogonal_mp_gram

    return np.asarray(orthogonal_mp_gram(columns.T @ columns, columns.T @ targets, n_nonzero_coefs=k))


if __name__ == "__main__":
    main()
