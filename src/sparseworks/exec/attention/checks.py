"""What every attention entry point asks of its tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseworks.core.errors import DtypeError, KernelError, ShapeError

STEP = 32
"""The kernels take head sizes that are multiples of this; others are padded with zeros."""


def check_heads(q: Tensor, k: Tensor, v: Tensor, dims: int) -> None:
    """q, k, v have `dims` dimensions (..., heads, tokens, d), one floating type and device, and heads that group.

    Raises:
        ShapeError: sizes that do not fit together.
        DtypeError: types that are not floating or differ.
        KernelError: tensors on several devices.
    """
    shapes = tuple(q.shape), tuple(k.shape), tuple(v.shape)
    if any(t.dim() != dims for t in (q, k, v)) or k.shape != v.shape:
        raise ShapeError(f"q, k, v are {dims}-dimensional (..., heads, tokens, d), k and v alike; got {shapes}.")
    if q.shape[-1] != k.shape[-1] or q.shape[:-3] != k.shape[:-3] or q.shape[-1] == 0:
        raise ShapeError(f"q, k, v share batch and head size (at least 1); got {shapes}.")
    if k.shape[-3] == 0 or q.shape[-3] % k.shape[-3]:
        raise ShapeError(f"{q.shape[-3]} query heads cannot be grouped over {k.shape[-3]} key heads.")
    if not q.is_floating_point() or not q.dtype == k.dtype == v.dtype:
        raise DtypeError(f"q, k, v have one floating type; got {q.dtype}, {k.dtype}, {v.dtype}.")
    if not q.device == k.device == v.device:
        raise KernelError(f"q, k, v lie on one device; got {q.device}, {k.device}, {v.device}.")


def check_lists(ptr: Tensor, idx: Tensor, lists: int, limit: int) -> None:
    """`(ptr, idx)` are contiguous int32 lists on the CPU with every entry in [0, limit).

    Raises:
        KernelError: otherwise.
    """
    if any(t.dtype is not torch.int32 or t.dim() != 1 or not t.is_contiguous() or not t.is_cpu for t in (ptr, idx)):
        raise KernelError("The lists are contiguous int32 vectors on the CPU.")
    good = ptr.numel() == lists + 1 and int(ptr[0]) == 0 and int(ptr[-1]) == idx.numel()
    if not good or bool((ptr.diff() < 0).any()):
        raise KernelError(f"The pointers do not rise from 0 to {idx.numel()} over {lists} lists.")
    if idx.numel() and (int(idx.min()) < 0 or int(idx.max()) >= limit):
        raise KernelError(f"A list holds indices outside [0, {limit}).")


def prepared(t: Tensor) -> Tensor:
    """Contiguous float32, the head size padded with zeros to a multiple of `STEP`; what is so already is not copied."""
    short = -t.shape[-1] % STEP
    return (F.pad(t.detach().float(), (0, short)) if short else t.detach().float()).contiguous()


def scale_of(scale: float | None, d: int) -> float:
    """`scale`, or 1 / sqrt(d)."""
    return d**-0.5 if scale is None else float(scale)
