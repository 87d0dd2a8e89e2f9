"""Does the scaling law of sparse models hold for small ones, and is sparsity a factor on the capacity term?

    L = (a_s (1 - S)^b_s + c_s) N^-b_n + (a_d / D)^b_d + c

S: sparsity, N: non-zeros of the hidden layers, D: characters learnt from (Frantar, Riquelme, Houlsby, Alistarh and Evci, 2023,
arXiv 2309.08520). The models are those of `nm_training.py` in three widths, trained for three lengths, each with its own schedule
of the rate, dense or by gradual magnitude pruning over the middle half of training; embeddings and head stay dense and are not in N.
The cells of the grid are held out a quarter at a time, so that each is predicted once by a law that has not seen it; beside it
stand two other forms, fitted by the same robust regression: non-zeros alone, and sparsity as a term of its own.

    python benchmarks/weights/scaling.py --text tinyshakespeare.txt.gz --threads 1 --json scaling
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import arguments, table
from nm_training import BATCH, Characters, Text, trained
from rows import Row, Rows, record_of

import sparseworks as sw
from sparseworks.evaluate import documentation_passages, fit_law, read_texts
from sparseworks.evaluate.laws import NAMES
from sparseworks.weights.train import Gradual

WIDTHS, STEPS, SPARSITIES = (32, 80, 200), (500, 1500, 4500), (0.0, 0.5, 0.75, 0.875)
FOLDS = 4
DELTA = 1e-3  # of Huber's loss, as in `fit_law`

Cell = tuple[int, int, int]
Run = tuple[float, float, float, float]
"""S, N, D, loss."""
Predict = Callable[[float, float, float], float]


def grow(text: Text, width: int, steps: int, sparsity: float, seed: int) -> Row:
    """One model, trained from scratch."""
    torch.manual_seed(seed)
    model = Characters(text.vocabulary, width)
    train = Gradual(every=max(steps // 50, 1), start=0.25, stop=0.75)
    method = sw.method("gmp", density=1 - sparsity, train=train) if sparsity else None
    supports, flops = trained(model, text, steps, seed, method)
    hidden = sum(m.weight.numel() for m in model.hidden if isinstance(m, torch.nn.Linear))
    record = record_of(
        method, supports, model, task=f"next character from scratch at width {width}, {text.name}",
        metric="nats a character", value=text.loss(model), higher_is_better=False, epochs=steps * BATCH / len(text.train), examples=len(text.train),
        data=f"{steps * BATCH:,} characters", seed=seed, training_flops=flops,
        more={"non_zeros": sum(s.count for s in supports.values()) if supports else hidden},
    )  # fmt: skip
    return Row(f"{'gmp' if sparsity else 'dense'}, {steps} steps", 1 - sparsity, record)


# -- laws ---------------------------------------------------------------------------------------------------------


def law(runs: Sequence[Run], starts: int = 64) -> Predict:
    """The law."""
    return fit_law(*zip(*runs, strict=True), starts=starts, bootstrap=0)


def nonzeros_alone(t: np.ndarray, s: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """N^-b_n + (a_d / D)^b_d + c, with its factors: sparsity does not matter beyond the non-zeros it leaves."""
    return np.exp(t[0] - np.exp(t[1]) * n) + np.exp(t[2] - np.exp(t[3]) * d) + np.exp(t[4])


def added(t: np.ndarray, s: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """a_s (1 - S)^b_s is added to the capacity term: as many coefficients as the law."""
    return nonzeros_alone(t, s, n, d) + np.exp(t[5] + np.exp(t[6]) * s)


def rival(form: Callable[..., np.ndarray], coefficients: int) -> Callable[..., Predict]:
    """Another form, fitted as `fit_law` does: Huber on log loss, the best of many starts; a quarter as many, which run one by one."""

    def fitted(runs: Sequence[Run], starts: int = 64) -> Predict:
        s, n, d, y = np.array(runs).T
        centre = np.log(n).mean(), np.log(d).mean()
        x = np.log(1 - s), np.log(n) - centre[0], np.log(d) - centre[1]
        draw = np.random.default_rng(0)
        low, high = np.log(y.min()) - 4, np.log(y.min())
        power = np.isin(np.arange(coefficients), (1, 3, 6))

        def once() -> Any:
            u = draw.random(coefficients)
            start = np.where(power, np.log(0.05 + 0.95 * u), low + (high - low) * u)
            return least_squares(
                lambda t: np.log(form(t, *x)) - np.log(y), start, bounds=(-30, 10), loss="huber", f_scale=DELTA
            )

        best = min((once() for _ in range(max(starts // 4, 1))), key=lambda found: found.cost).x
        return lambda s, n, d: float(form(best, np.log(1 - s), np.log(n) - centre[0], np.log(d) - centre[1]))

    return fitted


LAWS: dict[str, Callable[..., Predict]] = {
    "law: S a factor on N^-b_n": law,
    "S added to N^-b_n": rival(added, 7),
    "non-zeros alone": rival(nonzeros_alone, 5),
}


def held_out(grid: Mapping[Cell, Sequence[Run]], starts: int = 64) -> list[dict[str, Any]]:
    """Relative errors of cells that a law has not seen: each fold in turn, and the largest models of the longest runs."""
    folds = [{c for c in grid if sum(c) % FOLDS == fold} for fold in range(FOLDS)]
    largest = max(c[0] for c in grid), max(c[1] for c in grid)
    corner = [{c for c in grid if c[:2] == largest}]
    entries = []
    for name, fit in LAWS.items():
        inside, beyond = (_errors(grid, cells, fit, starts) for cells in (folds, corner))
        percent = {
            "held out, %": statistics.mean(inside), "worst, %": max(inside),
            "largest model and longest run held out, %": statistics.mean(beyond),
        }  # fmt: skip
        entries.append({"form": name, **{key: round(100 * value, 2) for key, value in percent.items()}})
    return entries


def _errors(
    grid: Mapping[Cell, Sequence[Run]], folds: Sequence[set[Cell]], fit: Callable[..., Predict], starts: int
) -> list[float]:
    errors = []
    for held in folds:
        found = fit([run for cell, runs in grid.items() if cell not in held for run in runs], starts)
        errors += [abs(found(s, n, d) / y - 1) for cell in held for s, n, d, y in grid[cell]]
    return errors


def coefficients(runs: Sequence[Run], starts: int = 64) -> list[dict[str, Any]]:
    """Of all runs, with intervals of 95 %."""
    found = fit_law(*zip(*runs, strict=True), starts=starts)
    return [dict(zip(("coefficient", "value", "low", "high"), (k, getattr(found, k), *found.intervals[k]), strict=True)) for k in NAMES]  # fmt: skip


def equivalents(runs: Sequence[Run], starts: int = 64) -> list[dict[str, Any]]:
    """How many times its non-zeros a dense model needs to be as good."""
    found = fit_law(*zip(*runs, strict=True), starts=starts, bootstrap=0)
    return [{"sparsity": s, "dense model of the same loss, x non-zeros": found.dense_equivalent(s, 1.0)} for s in SPARSITIES]  # fmt: skip


def main() -> None:
    args = arguments(
        (__doc__ or "").split("\n")[0],
        text={"type": Path, "help": "text to train and measure on (.txt, .jsonl, also .gz); default: documentation"},
        seeds={"type": int, "default": 2, "help": "repetitions"},
    )
    widths, lengths, seeds, starts = ((8, 16, 32), (10, 20, 40), 1, 4) if args.quick else (WIDTHS, STEPS, args.seeds, 64)  # fmt: skip
    found = (
        read_texts(args.text, paragraphs=False)
        if args.text
        else [p.whole for p in documentation_passages(held_out=False)]
    )
    name = args.text.name.partition(".")[0] if args.text else "documentation"
    text = Text(name, "\n".join(found), 512 if args.quick else 16384)
    setting = {"text": name, "characters": len(text.train), "widths": widths, "steps": lengths, "batch": BATCH}
    rows = Rows("scaling", setting, quick=args.quick)

    grid: dict[Cell, list[Run]] = {}
    cells = list(itertools.product(enumerate(widths), enumerate(lengths), enumerate(SPARSITIES)))
    for seed, ((i, w), (j, n), (k, s)) in itertools.product(range(seeds), cells):
        (row,) = rows.add(f"{w} {n} {s} {seed}", lambda w=w, n=n, s=s, r=seed: grow(text, w, n, s, r))
        run = (s, float(row.record.more["non_zeros"]), float(n * BATCH), row.record.value)
        grid.setdefault((i, j, k), []).append(run)
    rows.show()

    runs = [run for own in grid.values() for run in own]
    tables = {
        "held-out relative error": held_out(grid, starts),
        "coefficients, intervals of 95 %": coefficients(runs, starts),
        "equivalent dense models": equivalents(runs, starts),
    }
    for title, entries in tables.items():
        table(title, list(entries[0]), [[f"{v:.4g}" if isinstance(v, float) else v for v in e.values()] for e in entries])  # fmt: skip
    if seeds > 1:
        spread = [abs(a[3] - b[3]) / (a[3] + b[3]) for a, b, *_ in grid.values()]
        print(f"\nmean deviation of a seed from the mean of two: {statistics.mean(spread):.2%}")
    rows.store(args.json, tables=tables)


if __name__ == "__main__":
    main()
