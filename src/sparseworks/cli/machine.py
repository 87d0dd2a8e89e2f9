"""What the user says about the machine: threads, how values may be stored, and whether earlier timings still hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparseworks.core.errors import UnknownNameError

VALUES = {"bf16": "bfloat16", "int16": "int16"}
"""Names of the rounded types in which kept values may be stored beside float32."""


def value_names(given: Sequence[str]) -> list[str]:
    """The named types, each name alone or several with commas between.

    Raises:
        UnknownNameError: no such type.
    """
    wanted = [name.strip() for text in given for name in text.split(",") if name.strip()]
    for name in wanted:
        if name not in VALUES:
            raise UnknownNameError("value type", name, VALUES)
    return list(dict.fromkeys(wanted))


def value_types(given: Sequence[str]) -> tuple[Any, ...]:
    """float32 and the types of `value_names`.

    Raises:
        UnknownNameError: no such type.
    """
    import torch

    return (torch.float32, *(getattr(torch, VALUES[name]) for name in value_names(given)))


def set_threads(threads: int | None) -> None:
    """Use this many CPU threads, or all cores that the process may use."""
    import os

    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or usable)


def threads_text() -> str:
    """ "1 thread", "2 threads"."""
    import torch

    n = torch.get_num_threads()
    return "1 thread" if n == 1 else f"{n} threads"


def forget_timings() -> None:
    """Delete the measurements of layers that plans keep for this machine."""
    from sparseworks.exec.ceilings import cache_folder

    for file in cache_folder().glob("plans-*.json"):
        file.unlink(missing_ok=True)
