"""Measuring honestly on a shared machine: interleaved contenders, disturbed samples discarded, ratios per round.

Figures are `torch.utils.benchmark` measurements (median, interquartile range). Its `Timer` is not used to take the samples: it
runs one contender to the end before the next, and what a busy machine does in between would enter the ratio.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Measurement, TaskSpec

from sparseworks.exec.ceilings import Ceilings as Ceilings
from sparseworks.exec.ceilings import bound_us as bound_us
from sparseworks.exec.ceilings import ceilings as ceilings

try:
    import resource
except ImportError:  # not on Windows: no samples are discarded there
    resource = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Timing:
    """Time of one call of one contender.

    Attributes:
        us: median, microseconds.
        spread: interquartile range over the median.
        samples: all kept samples, microseconds, in order of the rounds.
        kept: share of the rounds that no involuntary context switch disturbed (1.0 where the system does not say).
    """

    us: float
    spread: float = 0.0
    samples: tuple[float, ...] = field(default=(), repr=False)
    kept: float = 1.0

    @property
    def ms(self) -> float:
        """Median in milliseconds."""
        return self.us / 1000

    @classmethod
    def of(cls, samples: list[float], kept: float = 1.0) -> Timing:
        """Summary of samples in microseconds."""
        seen = Measurement(1, [us / 1e6 for us in samples], TaskSpec("one call", ""))
        return cls(seen.median * 1e6, seen.iqr / seen.median if seen.median else 0.0, tuple(samples), kept)


@dataclass(frozen=True)
class Ratio:
    """A speed ratio: median over rounds, with the quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f}-{self.high:.2f})"


class Comparison(Mapping[str, Timing]):
    """Timings of contenders that ran interleaved: `comparison["dense"].ms`, `comparison.ratio("dense", "sparse")`."""

    def __init__(self, timings: Mapping[str, Timing]):
        self._timings = dict(timings)

    def ratio(self, slow: str, fast: str) -> Ratio:
        """How many times faster `fast` is than `slow`: from pairs of the same round where both kept all of them."""
        a, b = self._timings[slow], self._timings[fast]
        if len(a.samples) == len(b.samples) > 0:
            low, mid, high = _quartiles([x / y for x, y in zip(a.samples, b.samples, strict=True)])
            return Ratio(mid, low, high)
        ratio = a.us / b.us
        half = ratio * max(a.spread, b.spread) / 2
        return Ratio(ratio, ratio - half, ratio + half)

    def __getitem__(self, name: str) -> Timing:
        return self._timings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._timings)

    def __len__(self) -> int:
        return len(self._timings)

    def __repr__(self) -> str:
        return f"Comparison({', '.join(f'{k}: {t.us:.4g} us' for k, t in self.items())})"


def compare(
    contenders: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 15,
    block_us: float = 300.0,
    warmup: int = 2,
    device: str = "cpu",
) -> Comparison:
    """Time all contenders in the same rounds, in rotating order.

    A sample is a block of calls of at least `block_us` microseconds. A round in which the process was switched off the
    processor against its will is thrown away and repeated, up to as many times again as `rounds`; if the machine is so
    busy that fewer than a third of the rounds stay clean, all are kept, and the spread says so.

    Args:
        contenders: name -> function without arguments.
        rounds: rounds to keep.
        block_us: length of a block.
        warmup: calls of each before the first sample.
        device: type of the device that works: on "cuda" a block begins idle and ends when the GPU has done it.
    """
    wait = waiting(device)
    calls = {name: _calls(fn, block_us, warmup, wait) for name, fn in contenders.items()}
    names = list(contenders)
    clean: list[dict[str, float]] = []
    disturbed: list[dict[str, float]] = []
    for number in range(2 * rounds):
        start = number % len(names)
        before = _switches()
        sample = {name: _block(contenders[name], calls[name], wait) for name in names[start:] + names[:start]}
        (clean if _switches() == before else disturbed).append(sample)
        if len(clean) >= rounds or (not clean and number + 1 >= rounds):
            break
    kept = len(clean) / (len(clean) + len(disturbed))
    used = clean if len(clean) >= max(3, rounds // 3) else clean + disturbed
    return Comparison({name: Timing.of([s[name] for s in used], kept) for name in names})


def time_call(fn: Callable[[], Any], **options: Any) -> Timing:
    """Timing of one function, see `compare`."""
    return compare({"it": fn}, **options)["it"]


def machine() -> dict[str, Any]:
    """Facts a figure depends on: processor, cores, threads, instruction set, versions."""
    gpu = {"gpu": device_name("cuda")} if torch.cuda.is_available() else {}
    return gpu | {
        "cpu": cpu_name(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "native": _native_isa(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


@cache
def device_name(device: str) -> str:
    """The model of the current GPU for "cuda", else the type itself: figures of one GPU say nothing about another."""
    return torch.cuda.get_device_name() if device == "cuda" else device


@cache
def cpu_name() -> str:
    """The processor's name as the system states it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _native_isa() -> str:
    from sparseworks.exec.native import features

    return str(features().get("isa", "none"))


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def waiting(device: str) -> Callable[[], Any]:
    """A function that returns when a device of this type has done all it was given."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def _calls(fn: Callable[[], Any], block_us: float, warmup: int, wait: Callable[[], Any]) -> int:
    took = min(_block(fn, 1, wait) for _ in range(max(warmup, 1)))
    return max(1, min(10_000, round(block_us / took))) if took else 1


def _block(fn: Callable[[], Any], calls: int, wait: Callable[[], Any]) -> float:
    wait()
    start = time.perf_counter_ns()
    for _ in range(calls):
        fn()
    wait()
    return (time.perf_counter_ns() - start) / calls / 1000


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def _quartiles(samples: list[float]) -> tuple[float, float, float]:
    if len(samples) < 2:
        return samples[0], samples[0], samples[0]
    low, mid, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, mid, high
