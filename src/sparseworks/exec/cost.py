"""Cost: how long a kernel should take, before it is timed. A prior measured elsewhere, corrected by what this machine measured.

time = max(bytes / bandwidth, work / rate) + call, the rate of each kernel interpolated in log rows and log density.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import exp, log, log2

from sparseworks.exec.kernel import KERNELS, Call, Kernel
from sparseworks.exec.ladder import DENSE

BANDWIDTH = (19.6e9, 27e9)  # bytes/s with one thread and with more
CALL_US = 5.0
WITHIN = 2.5  # a kernel expected to take this many times the best expectation is not timed
_DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02)


@dataclass(frozen=True)
class Cost:
    """What a kernel needs.

    Attributes:
        kept, every: bytes it reads for each kept weight, and for each weight of the matrix, kept or not.
        rates: rows -> rates in 10^9 operations/s of one thread, two per kept weight and row, at the `densities`.
        densities: at which the rates hold, descending; one for a rate that does not depend on it.
    """

    kept: float
    every: float
    rates: Mapping[int, Sequence[float]] = field(hash=False)
    densities: Sequence[float] = _DENSITIES

    def us(self, call: Call) -> float:
        """Microseconds for `call`."""
        size = call.shape[0] * call.shape[1]
        moved = size * (self.every + call.density * self.kept) + call.entries * call.dtype.itemsize
        share = call.density if self.kept else 1.0
        work = 2 * size * share * call.rows
        return 1e6 * max(moved / BANDWIDTH[call.threads > 1], work / (1e9 * call.threads * self._rate(call))) + CALL_US

    def _rate(self, call: Call) -> float:
        by_rows = {rows: _between(self.densities, rates, call.density) for rows, rates in self.rates.items()}
        return _between(list(by_rows), list(by_rows.values()), call.rows)


def _between(at: Sequence[float], values: Sequence[float], where: float) -> float:
    """Linear in the logarithms, constant outside."""
    pairs = sorted(zip(at, values, strict=True))
    if where <= pairs[0][0]:
        return pairs[0][1]
    for (a, low), (b, high) in pairwise(pairs):
        if where <= b:
            share = log(where / a) / log(b / a)
            return exp((1 - share) * log(low) + share * log(high))
    return pairs[-1][1]


def _flat(**rates: float) -> dict[int, tuple[float, ...]]:
    return {int(rows[1:]): (rate,) for rows, rate in rates.items()}


_CSR32 = {1: (4.3, 4.3, 4.2, 4.3, 3.9, 3.3), 64: (2.2,) * 6}
_CSR16 = {1: (5.4, 5.4, 4.8, 4.9, 4.3, 3.5), 64: (2.3,) * 6}
_BITS32 = {1: (5.0, 4.0, 2.7, 1.4, 0.62, 0.19), 64: (5.0, 4.0, 2.7, 1.4, 0.62, 0.19)}
_BITS16 = {1: (8.7, 6.0, 3.8, 2.7, 0.95, 0.34), 64: (8.7, 6.0, 3.8, 2.7, 0.95, 0.34)}
_TILE = {
    1: (1.6,) * 6,
    16: (39, 38, 35, 34, 25, 25),
    64: (61, 58, 55, 49, 38, 28),
    256: (65, 56, 56, 48, 36, 23),
}
_PAIRS = {rows: tuple(2 * rate for rate in rates) for rows, rates in _TILE.items()}
_DENSE = _flat(_1=9.5, _4=13, _16=34, _64=60, _256=80)

PRIOR: Mapping[str, Cost] = {
    DENSE: Cost(0, 4, _DENSE, (1.0,)),
    "csr16-fp32": Cost(6, 0, _CSR32),
    "csr16-bf16": Cost(4, 0, _CSR16),
    "fanin-fp32": Cost(6, 0, _CSR32),
    "fanin-bf16": Cost(4, 0, _CSR16),
    "bitmask-fp32": Cost(4, 1 / 8, _BITS32),
    "bitmask-bf16": Cost(2, 1 / 8, _BITS16),
    "nm-fp32": Cost(4, 1 / 8, _BITS32),
    "nm-bf16": Cost(2, 1 / 8, _BITS16),
    "tile-fp32": Cost(5, 0, _TILE),
    "tile-bf16": Cost(3, 0, _TILE),
    "pairs-int16": Cost(2.5, 0, _PAIRS),
    "panel-fp32": Cost(4.2, 0, {1: (7.3,), 64: (60,), 256: (65,)}, (1.0,)),
    "panel-bf16": Cost(2.2, 0, {1: (15,), 64: (60,), 256: (65,)}, (1.0,)),
}
"""Measured on an AVX2 machine of two cores (3.1 GHz, 19.6 GB/s), one thread, weights of 4096x4096 and 1024x4096. The dense rates are
torch's in float32. A kernel sets its own in `Kernel.cost`; one without is always timed."""


@dataclass(frozen=True)
class Known:
    """One measurement: a kernel took `us` for `call`."""

    kernel: str
    call: Call
    us: float


class CostModel:
    """The prior, times measured over predicted of the nearest known case; the further that is, the less it is trusted."""

    def __init__(self, known: Sequence[Known] = ()):
        self._known: dict[str, list[tuple[Call, float]]] = {}
        for each in known:
            cost = cost_of(each.kernel)
            if cost is not None and each.call.density > 0:
                self._known.setdefault(each.kernel, []).append((each.call, each.us / cost.us(each.call)))

    def us(self, kernel: str, call: Call) -> float | None:
        """Expected microseconds, or None where nothing is known of the kernel."""
        cost = cost_of(kernel)
        if cost is None or call.dtype.itemsize != 4 or call.density <= 0:
            return None
        cases = [(_distance(call, seen), ratio) for seen, ratio in self._known.get(kernel, ())]
        distance, ratio = min(cases, default=(0.0, 1.0))
        return cost.us(call) * ratio ** (1 / (1 + distance))

    def promising(self, kernels: Sequence[str], call: Call, always: Sequence[str] = ()) -> list[str]:
        """Those worth timing: expected within `WITHIN` of the best expectation, or faster than dense, or of unknown cost."""
        expected = {name: self.us(name, call) for name in (DENSE, *kernels)}
        dense, best = expected[DENSE], min((us for us in expected.values() if us is not None), default=0.0)
        if dense is None:
            return list(kernels)
        return [
            name
            for name in kernels
            if (us := expected[name]) is None or name in always or us <= max(WITHIN * best, dense)
        ]

    def crossover(self, kernels: Sequence[str], call: Call) -> float | None:
        """The sparsity from which one of the kernels is expected to beat dense, in steps of 5 %; None: from none up to 95 %."""
        for percent in range(5, 100, 5):
            thinner = replace(call, density=1 - percent / 100)
            dense = self.us(DENSE, thinner)
            times = [us for name in kernels if (us := self.us(name, thinner)) is not None]
            if dense is not None and times and min(times) < dense:
                return percent / 100
        return None


def cost_of(name: str) -> Cost | None:
    """The description that the kernel carries, or the prior for its name."""
    kernel: Kernel | None = KERNELS.get(name) if name in KERNELS else None
    own = getattr(kernel, "cost", None)
    return own if own is not None else PRIOR.get(name)


def _distance(a: Call, b: Call) -> float:
    """Octaves of rows and density, half those of size, and a penalty for other threads."""
    size = log2(max(a.shape[0] * a.shape[1], 1)) - log2(max(b.shape[0] * b.shape[1], 1))
    rows, density = log2(a.rows / b.rows), log2(a.density / b.density)
    return abs(rows) + abs(density) + abs(size) / 2 + 2 * (a.threads != b.threads)
