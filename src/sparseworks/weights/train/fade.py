"""Progressive gradient flow: what an N:M pattern drops fades out, by its value or by a ramp of patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import PatternError
from sparseworks.core.pattern import ELEMENT, Pattern
from sparseworks.core.patterns import nm
from sparseworks.core.regime import REGIMES, Trained, Training
from sparseworks.core.select import select_mask
from sparseworks.weights.train.straight import Straight


@dataclass(frozen=True)
class _Phases(Straight):
    """Dense until `start`, sparse from `stop` on, as shares of the run; `_middle` is the progress between them."""

    start: float = 0.05
    stop: float = 0.75
    timed = True

    def _middle(self, run: Training) -> float:
        return (run.progress - self.start) / max(self.stop - self.start, 1e-9)


@REGIMES.register("fade_values")
@dataclass(frozen=True)
class FadeValues(_Phases):
    """The model computes with W (M + (1 - M) d), d the method's schedule of the middle phase, 1 before it and 0 after it.

    The gradient goes to all of W, and M is chosen anew every `every` steps. `Linear(1, 0)` and `Exponential` are MdGf-linear
    and MdGf-exponential (Bambhaniya et al., 2024, arXiv 2402.04744), where t counts steps and the rate differs from
    experiment to experiment; here t is the share of the middle phase.
    """

    def project(self, run: Training, site: Trained) -> Float[Tensor, "rows cols"]:
        """W (M + (1 - M) d)."""
        t = self._middle(run)
        value = 1.0 if t < 0 else 0.0 if t >= 1 else run.method.schedule(t)
        return site.weight() * (site.mask + ~site.mask * value)


@REGIMES.register("fade_patterns")
@dataclass(frozen=True)
class FadePatterns(_Phases):
    """Straight-through training whose pattern tightens in equal frames of the middle phase and is the method's after it.

    `stepwise`: M-1:M, M/2:M, M/4:M ... N:M. `geometric`: 8N:8M, 4N:4M, 2N:2M, N:M, one density and ever smaller groups.
    Frames whose groups do not divide the inputs of every site are left out.

    SdGf of Bambhaniya et al., 2024, arXiv 2402.04744; their code begins the last frame with the fine-tuning phase.
    """

    ramp: Literal["stepwise", "geometric"] = "stepwise"

    def project(self, run: Training, site: Trained) -> Float[Tensor, "rows cols"]:
        """W before the middle phase, M W from then on."""
        return site.weight() if self._middle(run) < 0 else super().project(run, site)

    def change(self, run: Training) -> None:
        """Choose again by the pattern of the frame."""
        ramp = [p for p in frames(run.method.pattern, self.ramp) if all(_fits(p, site) for site in run.sites)]
        pattern = ramp[min(int(max(self._middle(run), 0.0) * len(ramp) + 1e-9), len(ramp) - 1)]
        run.keep({name: select_mask(scores, pattern) for name, scores in run.scores().items()})

    def end(self, run: Training) -> None:
        """The method's own pattern."""
        super().change(run)


def _fits(pattern: Pattern, site: Trained) -> bool:
    return site.shape[1] % (pattern.group.cols or 1) == 0


def frames(pattern: Pattern, ramp: Literal["stepwise", "geometric"] = "stepwise") -> Sequence[Pattern]:
    """The patterns that lead to an N:M pattern, itself the last.

    Raises:
        PatternError: not N:M along the inputs, or an unknown ramp.
    """
    n, m = pattern.quota, pattern.group.cols
    if not isinstance(n, int) or m is None or pattern != nm(n, m) or pattern.unit != ELEMENT or not 0 < n < m:
        raise PatternError(f"Only N:M patterns such as 1:16 can be led to step by step, got {pattern}.")
    if ramp == "geometric":
        return [nm(n * k, m * k) for k in (8, 4, 2, 1)]
    if ramp != "stepwise":
        raise PatternError(f'A ramp is "stepwise" or "geometric", got {ramp!r}.')
    kept, halves = m // 2, []
    while kept > n:
        halves.append(kept)
        kept //= 2
    first = [m - 1] if m - 1 > max([n, *halves]) else []
    return [nm(k, m) for k in [*first, *halves, n]]
