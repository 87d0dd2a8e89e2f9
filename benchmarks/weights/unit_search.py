"""Is the best of 100 random sets of units, by its loss before training, better than one drawn blindly?

An MLP with two hidden layers on scikit-learn's digits. At each of five sparsities (shares of the units of both hidden layers that are
off) the searched subnetwork and one random one start from weights drawn anew and train alike, and the dense parent beside them; the
search, not counted in the FLOPs of training, costs about nine tenths of one training more. The
test is Wilcoxon's signed-rank test on the differences of a seed, two-sided, its p-values after Holm over the five sparsities;
beside it the 95 % interval of the mean difference, by Student's t.

    python benchmarks/weights/unit_search.py --threads 1 --json unit_search
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import arguments, table
from rows import Row, Rows, record_of
from scipy import stats
from tickets import METRIC, Task, digits
from torch import nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.weights.subnetworks import random_search

KEEPS = (0.5, 0.3, 0.2, 0.1, 0.05)
HIDDEN = (128, 128)
LABELS = {"best of 100": 100, "one at random": 1}


def fresh(model: nn.Module) -> None:
    """New weights of every layer."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()


def trained(task: Task, label: str, keep: float, seed: int) -> Row:
    """A subnetwork of units, trained with its supports held; the two labels draw from different seeds."""
    x, y = task.x[:512], task.y[:512]

    @torch.no_grad()
    def loss(model: nn.Module) -> float:
        return float(F.cross_entropy(model(x), y))

    model = task.net(seed)
    tries = LABELS[label]
    found = random_search(model, loss, keep=keep, tries=tries, fresh=fresh, seed=2 * seed + (tries == 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    handle = sw.weights.keep_support(optimizer, model, sw.sites(model), found.supports)
    task.loop(model, optimizer, seed, task.steps, lambda: None)
    handle.remove()
    size = sum(s.size for s in found.supports.values())
    kept = sum(s.count for s in found.supports.values())
    record = record_of(
        sw.method("random"), found.supports, model, fresh=True, task=f"{task.name}, units left out", metric=METRIC,
        value=task.accuracy(model), seed=seed, structure="units", epochs=task.steps * 64 / len(task.x), examples=len(task.x),
        data=f"{task.steps} steps from random weights", training_flops=task.flops(kept / size, task.steps),
        more={"loss_before_training": found.loss, "share_of_weights": kept / size},
    )  # fmt: skip
    return Row(label, keep, record)


def dense(task: Task, seed: int) -> Row:
    """The parent, trained as long."""
    model = task.net(seed)
    task.train(model, seed, lambda: None)
    record = record_of(
        None, {}, model, task=f"{task.name}, units left out", metric=METRIC, value=task.accuracy(model), seed=seed,
        epochs=task.steps * 64 / len(task.x), examples=len(task.x), data=f"{task.steps} steps from random weights",
        training_flops=task.flops(1.0, task.steps),
    )  # fmt: skip
    return Row("dense", 1.0, record)


def differences(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Searched less random at each sparsity, seed by seed: mean, its interval, and p before and after Holm."""
    value = {(r.label, r.density, r.record.seed): r.record.value for r in rows}
    found = []
    for keep in sorted({r.density for r in rows if r.density < 1}, reverse=True):
        seeds = sorted({r.record.seed for r in rows if r.density == keep})
        gaps = [value["best of 100", keep, s] - value["one at random", keep, s] for s in seeds]
        mean = stats.ttest_1samp(gaps, 0.0)
        low, high = mean.confidence_interval(0.95)
        p = float(stats.wilcoxon(gaps).pvalue) if any(gaps) else 1.0
        found.append({
            "units left out": f"{100 * (1 - keep):.3g} %", "seeds": len(seeds), "best of 100 - random, points": round(sum(gaps) / len(gaps), 2),
            "95 % interval": f"{low:.2f} to {high:.2f}", "p (Wilcoxon)": p,
        })  # fmt: skip
    corrected = holm([line["p (Wilcoxon)"] for line in found])
    return [
        {**line, "p (Wilcoxon)": f"{line['p (Wilcoxon)']:.3f}", "p (Holm)": f"{p:.3f}"}
        for line, p in zip(found, corrected, strict=True)
    ]


def holm(values: Sequence[float]) -> list[float]:
    """p-values for which the chance of any false one is at most their level: the k-th smallest of m times m - k + 1, and not falling.

    Source: Holm, 1979.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    corrected, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, values[i] * (len(values) - rank)))
        corrected[i] = largest
    return corrected


def main() -> None:
    given = arguments(
        (__doc__ or "").splitlines()[0],
        seeds={"type": int, "default": 12, "help": "pairs at each sparsity"},
    )
    steps, seeds = (30, 2) if given.quick else (300, given.seeds)
    task = digits(steps)
    task = Task(task.name, task.x, task.y, task.x_test, task.y_test, HIDDEN, steps)
    setting: Mapping[str, Any] = {"task": task.name, "hidden": HIDDEN, "steps": steps, "tries": LABELS["best of 100"]}
    rows = Rows("unit_search", setting, quick=given.quick)
    for seed in range(seeds):
        rows.add(f"dense {seed}", lambda s=seed: dense(task, s))
        for keep in KEEPS:
            for label in LABELS:
                rows.add(f"{label} {keep} {seed}", lambda x=label, k=keep, s=seed: trained(task, x, k, s))
    rows.show()
    lines = differences(rows.rows)
    table("best of 100 less random, test accuracy", list(lines[0]), [[str(v) for v in line.values()] for line in lines])
    rows.store(given.json, tables={"best of 100 against random, Wilcoxon's signed-rank test": lines})


if __name__ == "__main__":
    main()
