"""Cold weights for the kernel benchmarks: contenders walk through copies, so that weights come from memory as in a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from typing import TypeVar

import torch

from sparseworks.core.support import Support
from sparseworks.exec import FORMATS, KERNELS, Packed

T = TypeVar("T")
BYTES = 128 << 20
MOST = 64


def turning(items: Sequence[T]) -> Callable[[], T]:
    """The items in turn, for ever."""
    each = cycle(items)
    return lambda: next(each)


def copies(nbytes: int) -> int:
    """Copies of `nbytes` that do not fit a cache, at most 64."""
    return max(1, min(MOST, -(-BYTES // max(nbytes, 1))))


def packed_copies(name: str, weight: torch.Tensor, support: Support) -> list[Packed]:
    """Copies of the form that the kernel called `name` reads."""
    kernel = KERNELS.get(name)
    form = FORMATS.get(kernel.format).pack(weight, support, dtype=kernel.value_dtype)
    return [replace(form, parts={k: t.clone() for k, t in form.parts.items()}) for _ in range(copies(form.nbytes))]


def product(name: str, weight: torch.Tensor, support: Support, x: Callable[[], torch.Tensor]) -> Callable[[], object]:
    """A contender: the kernel called `name` on cold weights; its buffers are checked beforehand."""
    forms, kernel = packed_copies(name, weight, support), KERNELS.get(name)
    for form in forms:
        kernel(x(), form, None)
    turn = turning(forms)
    return lambda: kernel(x(), turn(), None)
