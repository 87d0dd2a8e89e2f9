"""Histograms of |x|, or of |x_j| times a constant of its column: thresholds for any density from one pass over the data."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.core.stats import STATS, Stat, _counted

BINS = 10_000
_LOW, _HIGH = -32.0, 32.0
_AT_ONCE = 1 << 20


@STATS.register("input_histogram")
class InputHistogram(Stat):
    """How many |x_tj| * f_j fall into each of 10,000 bins whose edges are 2^(-32 + 64 i / 10,000), 0.44 % apart; `(10000,)`.

    The edges do not depend on the data, so that merging equals concatenation exactly. Zeros and what is smaller than the first
    edge count in the first bin, what is larger than the last in the last.
    """

    state_names = ("counts",)
    factor: ClassVar[Tensor | None] = None
    """f, a constant per input; None = 1."""

    def __init__(self, rows: int, cols: int):
        super().__init__(rows, cols)
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    @classmethod
    def of(cls, factor: Float[Tensor, " cols"] | None) -> type[InputHistogram]:
        """This statistic of |x_j| f_j; sites with the same factor object share their inputs' histogram."""
        if factor is None:
            return cls
        return type(cls.__name__, (cls,), {"factor": factor.detach()})

    def update(self, x: Tensor) -> None:
        """Add a batch `(..., cols)`.

        Raises:
            ShapeError: the factor is for another number of inputs.
        """
        x = self._matrix(x, self._width)
        if self.factor is not None and self.factor.shape != (self._width,):
            raise ShapeError(f"A factor of shape {tuple(self.factor.shape)} does not fit vectors of {self._width}.")
        for some in x.split(max(1, _AT_ONCE // max(self._width, 1))):
            size = some.float().abs()
            size = size if self.factor is None else size * self.factor.to(size)
            place = ((size.log2() - _LOW) * (BINS / (_HIGH - _LOW))).clamp(0, BINS - 1).long()
            self.counts += torch.bincount(place.reshape(-1), minlength=BINS).double().cpu()

    def state(self) -> dict[str, Tensor]:
        """Counts, and the shape of the site they belong to."""
        return {**super().state(), "shape": torch.tensor([self.rows, self.cols])}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore a copy of `state()`.

        Raises:
            ShapeError: it belongs to a site of another shape, or lacks something.
        """
        found = state.get("shape")
        if found is None or found.tolist() != [self.rows, self.cols]:
            held = "nothing" if found is None else "x".join(map(str, found.tolist()))
            raise ShapeError(
                f"{type(self).__name__}: the saved state is of {held}, the site is {self.rows}x{self.cols}."
            )
        super().load(state)

    @property
    def _width(self) -> int:
        return self.cols

    def threshold(self, density: float) -> float:
        """t with P(|x_j| f_j > t) = density on what was seen, on a logarithmic line within a bin; 0 for density 1, infinity for 0.

        Raises:
            BudgetError: the density is not in [0, 1].
            CalibrationError: nothing was seen.
        """
        _counted(self)
        if not 0 <= density <= 1:
            raise BudgetError(f"A density lies in [0, 1], got {density}.")
        if density == 1:
            return 0.0
        if density == 0:
            return float("inf")
        above = self._above
        wanted = density * float(above[0])
        last = int((above > wanted).sum()) - 1  # the bin in which the threshold lies: more lie above its lower edge
        if last <= 0:
            return 0.0
        held = float(self.counts[last])
        share = (float(above[last]) - wanted) / held if held else 0.0
        return 2.0 ** (_LOW + (_HIGH - _LOW) / BINS * (last + share))

    def density(self, threshold: float) -> float:
        """P(|x_j| f_j > threshold) on what was seen, the inverse of `threshold`."""
        _counted(self)
        above = self._above
        if threshold < 2.0**_LOW:
            return 1.0 if threshold < 0 else float(above[1] / above[0])
        if threshold >= 2.0**_HIGH:
            return 0.0
        place = (float(torch.tensor(threshold, dtype=torch.float64).log2()) - _LOW) * (BINS / (_HIGH - _LOW))
        at = min(int(place), BINS - 1)
        return float((above[at] - (place - at) * self.counts[at]) / above[0])

    @property
    def _above(self) -> Float[Tensor, " bins"]:
        """How many lie in each bin or above it."""
        return self.counts.flip(0).cumsum(0).flip(0)


@STATS.register("output_histogram")
class OutputHistogram(InputHistogram):
    """The same of what a site gives instead of what it receives."""

    source = "output"

    @property
    def _width(self) -> int:
        return self.rows
