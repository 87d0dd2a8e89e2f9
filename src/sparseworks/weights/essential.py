"""Essential sparsity: how much can go at once before quality does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from sparseworks.core.errors import BudgetError
from sparseworks.core.method import Method
from sparseworks.core.support import Support
from sparseworks.weights.prune import prune

SPARSITIES = tuple(i / 10 for i in range(1, 10))


@dataclass(frozen=True)
class Sweep:
    """Quality of a model pruned in one shot, level by level.

    Attributes:
        sparsities: of the levels, rising; patterns that fix the density (N:M) stand at theirs.
        labels: what each level is: "60 %" or "2:4".
        values: quality at each level; `dense` before pruning.
        higher_is_better: direction of the quality.
        tolerance: relative loss of quality that counts as none.
    """

    sparsities: tuple[float, ...]
    labels: tuple[str, ...]
    values: tuple[float, ...]
    dense: float
    higher_is_better: bool
    tolerance: float

    @property
    def drops(self) -> tuple[float, ...]:
        """Relative loss of quality at each level, negative where it rose."""
        sign = 1 if self.higher_is_better else -1
        return tuple(sign * (self.dense - v) / abs(self.dense) for v in self.values)

    @property
    def knee(self) -> float:
        """Essential sparsity: the last level before the first whose loss exceeds the tolerance; 0 if there is none."""
        return knee(self.sparsities, self.drops, self.tolerance)

    def to_data(self) -> dict[str, Any]:
        """Plain data; `sparseworks.report.plots.sweep` draws them."""
        return {**asdict(self), "drops": self.drops, "knee": self.knee}


def essential_sparsity(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    data: Iterable[Any] | None = None,
    *,
    method: Method | str = "magnitude",
    sparsities: Sequence[float] = SPARSITIES,
    patterns: Sequence[str] = (),
    higher_is_better: bool = False,
    tolerance: float = 0.05,
    tune: Callable[[nn.Module, Mapping[str, Support]], None] | None = None,
) -> Sweep:
    """Prune copies of the model in one shot at each sparsity, without or with one normal fine-tuning, and find the knee.

    Args:
        evaluate: quality of a model.
        data: calibration batches, where the method needs them.
        method: "magnitude" (layer by layer), "magnitude_global", or any other.
        sparsities: levels of the method's own pattern.
        patterns: further levels that fix their density, such as "2:4".
        tune: `tune(pruned, supports)`, in place; holding the support is its part (see `recover`).

    Source: Jaiswal, Liu, Chen and Wang, 2023, arXiv 2306.03805.

    Raises:
        BudgetError: no levels, or one outside (0, 1).
    """
    chosen = Method.of(method)
    if not (sparsities or patterns) or any(not 0 < s < 1 for s in sparsities):
        raise BudgetError(f"A sweep needs sparsities inside (0, 1), got {tuple(sparsities)}.")
    batches = None if data is None else list(data)
    levels = [(s, f"{s:.0%}", chosen.with_(density=1 - s)) for s in sparsities]
    levels += [
        (1 - m.pattern.fixed_density, p, m) for p in patterns if (m := chosen.with_(pattern=p)).pattern.fixed_density
    ]
    found = []
    for s, label, level in sorted(levels, key=lambda v: v[0]):
        student = copy.deepcopy(model)
        supports = prune(student, level, batches, progress=False).supports
        if tune is not None:
            tune(student, supports)
        found.append((s, label, float(evaluate(student))))
    s, labels, values = (tuple(v) for v in zip(*found, strict=True))
    return Sweep(s, labels, values, float(evaluate(model)), higher_is_better, tolerance)


def knee(sparsities: Sequence[float], drops: Sequence[float], tolerance: float) -> float:
    """The last sparsity before the first whose relative loss of quality exceeds the tolerance; 0 where the first does."""
    found = 0.0
    for s, drop in sorted(zip(sparsities, drops, strict=True)):
        if not drop <= tolerance:
            break
        found = s
    return found
