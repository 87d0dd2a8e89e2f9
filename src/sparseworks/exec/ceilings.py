"""What the machine can do at best: memory bandwidth and multiply-add rate, measured once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sparseworks.exec.kernel import Call

_VERSION = 2
_SMALLEST, _LARGEST = 1 << 22, 1 << 29
_PIECE = 1 << 22
_MEMORY: dict[str, Ceilings] = {}


@dataclass(frozen=True)
class Ceilings:
    """Best rates seen on this machine.

    Attributes:
        bandwidth: bytes/s when reading a working set of `working_set` bytes over and over.
        flops: operations/s of a large product (a multiply-add counts two): float32 on the CPU, the type asked for on a GPU.
        threads: CPU threads used.
        working_set: bytes.
    """

    bandwidth: float
    flops: float
    threads: int
    working_set: int


def ceilings(
    *,
    working_set: int = _LARGEST,
    threads: int | None = None,
    cache: bool = True,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Ceilings:
    """Measured ceilings of this machine; a second or two the first time, then read from the user's cache folder.

    Args:
        working_set: bytes that are read between two readings of the same byte, that is the size of a model's weights: a
            model that stays in the last cache is read faster than one that does not. Rounded to a power of two.
        threads: default: as torch is set.
        cache: read and write the cache file.
        device: "cpu" or "cuda".
        dtype: on a GPU, the type of the product; tensor cores multiply short types faster.
    """
    threads = threads or torch.get_num_threads()
    size = min(max(1 << round(log2(max(working_set, 1))), _SMALLEST), _LARGEST)
    key = f"{_VERSION}-{threads}-{size}-{torch.__version__}{_on(device, dtype)}"
    found = _MEMORY.get(key)
    if found is None and cache:
        found = _read(key)
    if found is None:
        found = _measure(size, threads) if device == "cpu" else gpu_ceilings(size, dtype)
        if cache:
            _write(key, found)
    _MEMORY[key] = found
    return found


def bound_us(call: Call, nbytes: int, nnz: int, limits: Ceilings | None = None, *, rate: float = 1.0) -> float:
    """max(bytes / bandwidth, operations / peak) in microseconds: no kernel can be faster than this.

    Bytes are those of the packed weight, of the input and of the output; operations are two per kept weight and row.

    Args:
        call: rows, shape and type of the input.
        nbytes: bytes of the packed weight.
        nnz: kept weights.
        limits: default: `ceilings()`.
        rate: operations that the kernel can do in the time of one in float32 (`Kernel.rate`).
    """
    limits = limits or ceilings()
    moved = nbytes + call.entries * call.dtype.itemsize
    return 1e6 * max(moved / limits.bandwidth, 2 * nnz * call.rows / (rate * limits.flops))


def cache_folder() -> Path:
    """Where measurements are kept: `$SPARSEWORKS_CACHE`, else `sparseworks` in the user's cache folder."""
    own = os.environ.get("SPARSEWORKS_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "sparseworks"


def read_json(path: Path) -> dict[str, Any]:
    """The file's content, or nothing if it is missing or damaged: a cache may be lost without harm."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write under a temporary name and rename; a folder that cannot be written is no error for a cache."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(data, indent=1, sort_keys=True), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()


def machine_key() -> str:
    """A short name of this machine: processor, cores, instruction set."""
    from sparseworks.exec.measure import machine

    facts = {k: v for k, v in machine().items() if k in ("cpu", "cores", "isa", "native", "system")}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _on(device: str, dtype: torch.dtype) -> str:
    from sparseworks.exec.measure import device_name

    return "" if device == "cpu" else f"-{device_name(device)}-{dtype}"


def _file() -> Path:
    return cache_folder() / f"ceilings-{machine_key()}.json"


def _read(key: str) -> Ceilings | None:
    entry = read_json(_file()).get(key)
    try:
        return Ceilings(**entry) if entry else None
    except TypeError:
        return None


def _write(key: str, value: Ceilings) -> None:
    write_json(_file(), {**read_json(_file()), key: asdict(value)})


def _measure(size: int, threads: int) -> Ceilings:
    """One thread finds a quiet moment even on a busy machine, several at once hardly: arithmetic scales with cores, so one
    thread's rate gives a floor for several."""
    before = torch.get_num_threads()
    rates = {}
    try:
        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            rates[count] = (_bandwidth(size), _flops())
    finally:
        torch.set_num_threads(before)
    bandwidth = max(rate for rate, _ in rates.values())
    flops = max(rates[threads][1], min(threads, os.cpu_count() or 1) * rates[1][1])
    return Ceilings(bandwidth, flops, threads, size)


def _bandwidth(size: int) -> float:
    """Best rate over pieces of the working set, read in turn: a piece is short enough to escape other processes."""
    matrix = torch.ones(size // 4 // 1024, 1024)
    vector = torch.ones(1024)
    pieces = matrix.split(_PIECE // 4 // 1024)
    readers = (lambda m: m @ vector, lambda m: m.sum())
    return max(_PIECE / _best([partial(read, piece) for piece in pieces]) for read in readers)


def _flops() -> float:
    def rate(n: int) -> float:
        a, b = torch.randn(n, n), torch.randn(n, n)
        return 2 * n**3 / _best([lambda: a @ b], 0.15)

    return max(rate(n) for n in (256, 512, 1024))


def _best(fns: Sequence[Callable[[], Any]], seconds: float = 0.4) -> float:
    """Seconds of the shortest call, going round for a while."""
    fns[0]()
    best, started = float("inf"), time.perf_counter()
    for fn in cycle(fns):
        begin = time.perf_counter()
        fn()
        end = time.perf_counter()
        best = min(best, end - begin)
        if end - started > seconds:
            return best
    return best


def gpu_ceilings(size: int, dtype: torch.dtype) -> Ceilings:
    """Best rates of the current GPU: a buffer of `size` bytes read by a sum, a large product of `dtype`, each timed by events."""
    buffer = torch.zeros(size // 4, device="cuda")
    bandwidth = size / min(gpu_seconds(buffer.sum) for _ in range(5))
    flops = 0.0
    for n in (2048, 4096, 8192):
        a, b = (torch.randn(n, n, device="cuda").to(dtype) for _ in range(2))
        flops = max(flops, 2 * n**3 / gpu_seconds(lambda a=a, b=b: a @ b))
    return Ceilings(bandwidth, flops, torch.get_num_threads(), size)


def gpu_seconds(fn: Callable[[], Any], calls: int = 10) -> float:
    """Seconds of one call on the GPU: shortest of `calls`, by events, after two for warm-up."""
    pairs = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(calls)]
    for _ in range(2):
        fn()
    for start, end in pairs:
        start.record()
        fn()
        end.record()
    torch.cuda.synchronize()
    return min(start.elapsed_time(end) for start, end in pairs) / 1000
