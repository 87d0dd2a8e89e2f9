"""Race: dense attention is always a candidate; where it is faster than a method on this machine, it stays."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import log2
from typing import TypeVar

import torch

from sparseworks.attention.heads import Heads

T = TypeVar("T")


@dataclass(frozen=True)
class Lap:
    """Seconds of one call, dense and by the method."""

    dense: float
    sparse: float

    @property
    def pays(self) -> bool:
        """Whether the method was faster."""
        return self.sparse < self.dense


@dataclass
class Race:
    """Times both ways once for every phase and size of a call (lengths within a factor of 1.4 count as one), then goes by that.

    Attributes:
        laps: what was timed: (method, phase, heads, key heads, head size, queries, half steps of log2 keys, threads) -> seconds.
        clock: in seconds.
    """

    laps: dict[tuple[object, ...], Lap] = field(default_factory=dict)
    clock: Callable[[], float] = time.perf_counter

    def run(self, name: str, heads: Heads, dense: Callable[[], T], sparse: Callable[[], T]) -> T:
        """The result of the faster way; of the method's, where both are run to be timed."""
        key = self._key(name, heads)
        lap = self.laps.get(key)
        if lap is not None:
            return sparse() if lap.pays else dense()
        dense()  # caches and allocations of the first call are nobody's
        start = self.clock()
        dense()
        middle = self.clock()
        found = sparse()
        self.laps[key] = Lap(middle - start, self.clock() - middle)
        return found

    def table(self) -> list[dict[str, object]]:
        """Plain data: one row for each kind of call."""
        names = ("method", "phase", "heads", "kv_heads", "d", "queries", "keys", "threads")
        rows = []
        for key, lap in self.laps.items():
            row = dict(zip(names, key, strict=True)) | {"dense_us": 1e6 * lap.dense, "sparse_us": 1e6 * lap.sparse}
            rows.append(
                row | {"keys": round(2 ** (float(str(key[6])) / 2)), "chosen": "sparse" if lap.pays else "dense"}
            )
        return rows

    def _key(self, name: str, heads: Heads) -> tuple[object, ...]:
        size = round(2 * log2(max(heads.keys, 1)))
        queries = heads.queries if heads.queries < 16 else round(2 * log2(heads.queries))
        threads = torch.get_num_threads()
        return name, heads.phase, heads.heads * heads.batch, heads.kv_heads, heads.d, queries, size, threads
