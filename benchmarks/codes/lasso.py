"""The lasso to one duality gap: sparse coding of many signals, and single problems as celer's and skglm's own benchmarks have them.

Every contender is first set to the loosest tolerance of its own, by factors of ten, at which its codes have a gap of at most
`GAP` of the cost at 0; then all are timed side by side in float64. The gap is computed here, in numpy, for all alike.

    PYTHONPATH=PEERS python benchmarks/codes/lasso.py --threads 2 --json codes/lasso

Peers: scikit-learn (`Lasso`, one call for all signals as `SparseCoder` makes it), celer, skglm; who is not installed is named.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import common

from sparseworks.exec import measure
from sparseworks.solve.coders import CoordinateDescent
from sparseworks.solve.penalties import L1

GAP = 1e-6
Solve = Callable[[float], np.ndarray]


def correlated(samples: int, features: int, support: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Columns that are correlated with 0.5^distance, a sparse coefficient vector, signal to noise 3."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, features))
    for j in range(1, features):
        x[:, j] = 0.5 * x[:, j - 1] + 0.75**0.5 * x[:, j]
    w = np.zeros(features)
    w[rng.permutation(features)[:support]] = rng.choice([-1.0, 1.0], support)
    y = x @ w
    noise = rng.standard_normal(samples)
    return np.asfortranarray(x), y + noise * np.linalg.norm(y) / np.linalg.norm(noise) / 3


def gap(x: np.ndarray, y: np.ndarray, z: np.ndarray, weight: float) -> float:
    """Largest of (cost - dual) / cost at 0, over columns of y and rows of z."""
    residual = y - x @ z.T
    scale = 1 / np.maximum(np.abs(x.T @ residual).max(0) / weight, 1)
    cost = (residual**2).sum(0) / 2 + weight * np.abs(z).sum(1)
    dual = (residual * y).sum(0) * scale - (residual**2).sum(0) * scale**2 / 2
    return float(((cost - dual) / ((y**2).sum(0) / 2)).max())


def contenders(x: np.ndarray, y: np.ndarray, weight: float) -> dict[str, Solve]:
    """Name -> (tolerance -> codes, one row a column of y)."""
    alpha = weight / len(y)
    atoms, signals = torch.from_numpy(np.ascontiguousarray(x.T)), torch.from_numpy(np.ascontiguousarray(y.T))

    def ours(tolerance: float) -> np.ndarray:
        return CoordinateDescent(penalty=L1(weight), tolerance=tolerance)(atoms, signals).z.numpy()

    def sklearn(tolerance: float) -> np.ndarray:
        from sklearn.linear_model import Lasso

        solver = Lasso(alpha, fit_intercept=False, tol=tolerance, max_iter=100_000, precompute=y.shape[1] > 1)
        return solver.fit(x, y).coef_.reshape(y.shape[1], -1)

    def celer(tolerance: float) -> np.ndarray:
        from celer import Lasso

        solver = Lasso(alpha, fit_intercept=False, tol=tolerance, max_iter=200)
        return np.stack([solver.fit(x, column).coef_ for column in y.T])

    def skglm(tolerance: float) -> np.ndarray:
        from skglm import Lasso

        solver = Lasso(alpha, fit_intercept=False, tol=tolerance, max_iter=200)
        return np.stack([solver.fit(x, column).coef_ for column in y.T])

    return {"sparseworks": ours} | {f.__name__: f for f in (sklearn, celer, skglm) if find_spec(f.__name__)}


def tuned(x: np.ndarray, y: np.ndarray, weight: float, solve: Solve) -> tuple[float, float]:
    """The loosest power of ten as a tolerance that meets the gap, and the gap it gives."""
    for power in range(4, 13):
        found = gap(x, y, solve(10.0**-power), weight)
        if found <= GAP:
            return 10.0**-power, found
    return 10.0**-12, found


def case(name: str, x: np.ndarray, y: np.ndarray, share: float, rounds: int) -> tuple[list[common.Line], dict]:
    """All contenders on one problem: columns of y are signals, `share` is the weight over the largest that matters."""
    weight = share * float(np.median(np.abs(x.T @ y).max(0)))
    found = contenders(x, y, weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a peer says so when it stops short; its gap is stored
        settings = {peer: tuned(x, y, weight, solve) for peer, solve in found.items()}
        calls = {peer: (lambda s=solve, t=settings[peer][0]: s(t)) for peer, solve in found.items()}
        timings = measure.compare(calls, rounds=rounds, warmup=1)
    nonzero = float((found["sparseworks"](settings["sparseworks"][0]) != 0).sum(1).mean())
    facts = {"nonzero": nonzero, "tolerance_and_gap": settings}
    return [common.line(name, timings, "sparseworks", peer) for peer in found if peer != "sparseworks"], facts


def signals_of(rows: int, features: int, support: int, atoms: np.ndarray, seed: int = 1) -> np.ndarray:
    """Columns: sums of a few atoms, and noise."""
    rng = np.random.default_rng(seed)
    codes = rng.standard_normal((atoms.shape[1], rows)) * (
        rng.random((atoms.shape[1], rows)) < support / atoms.shape[1]
    )
    return atoms @ codes + 0.1 * rng.standard_normal((features, rows))


def main() -> None:
    """Measure, show, store."""
    given = common.arguments("The lasso beside scikit-learn, celer and skglm.")
    small = given.quick
    dictionary = np.random.default_rng(0).standard_normal((64, 256))
    dictionary = np.asfortranarray(dictionary / np.linalg.norm(dictionary, axis=0))
    lines, facts = [], {}
    cases = [("coding 64 x 256, %d signals", dictionary, signals_of(20 if small else 200, 64, 6, dictionary), 0.1)]
    shapes = [(72, 400)] if small else [(72, 7129), (1000, 10000), (500, 3000), (5000, 500)]
    for samples, features in shapes:
        x, y = correlated(samples, features, min(samples, features) // 10)
        for share in (0.1,) if samples * features > 5_000_000 else (0.1, 0.01):
            cases.append((f"{samples} x {features}, weight {share} of the largest", x, y[:, None], share))
    for name, x, y, share in cases:
        name = name % y.shape[1] if "%d" in name else name
        found, facts[name] = case(name, x, y, share, 3 if small else given.rounds)
        lines += found
        common.show(found, name)
    missing = [peer for peer in ("sklearn", "celer", "skglm") if not find_spec(peer)]
    common.store("codes/lasso", lines, given.json, gap=GAP, cases=facts, missing=missing)


if __name__ == "__main__":
    main()
