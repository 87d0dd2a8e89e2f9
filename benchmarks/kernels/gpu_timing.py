"""Timing on a GPU: contenders in the same rounds, each as one CUDA graph, with the L2 cache emptied before every sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from sparseworks.exec import measure


def compare(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> measure.Comparison:
    """Microseconds of one call of each, by CUDA events, in rotating order.

    A buffer of twice the L2 cache is written before every sample: weights and caches then come from memory, as in a model
    that is larger than L2. Calls are replayed from CUDA graphs where they can be captured, so that what Python and the
    driver take per launch does not enter: in a captured model it does not either.
    """
    runs = {name: _captured(fn) for name, fn in contenders.items()}
    flush = torch.empty(2 * properties().L2_cache_size // 4, dtype=torch.int32, device="cuda")
    names, samples = list(runs), {name: [] for name in runs}
    for number in range(rounds):
        start = number % len(names)
        events = {}
        for name in names[start:] + names[:start]:
            flush.zero_()
            events[name] = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))
            events[name][0].record()
            runs[name]()
            events[name][1].record()
        torch.cuda.synchronize()
        for name, (begin, end) in events.items():
            samples[name].append(1000 * begin.elapsed_time(end))
    return measure.Comparison({name: measure.Timing.of(s) for name, s in samples.items()})


def properties() -> Any:
    """What the driver says about the current GPU."""
    return torch.cuda.get_device_properties(torch.cuda.current_device())


def bandwidth() -> float | None:
    """Bytes/s of the memory by its clock (two transfers a cycle) and the width of its bus, where torch tells them."""
    p = properties()
    clock, bits = getattr(p, "memory_clock_rate", None), getattr(p, "memory_bus_width", None)
    return 2 * 1000 * clock * bits / 8 if clock and bits else None


def _captured(fn: Callable[[], Any]) -> Callable[[], Any]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            fn()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            fn()
    except RuntimeError:  # it waits for the host somewhere
        torch.cuda.synchronize()
        return fn
    return graph.replay
