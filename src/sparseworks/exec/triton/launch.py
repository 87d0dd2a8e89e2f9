"""What every launch shares: where tensors must be, how a kernel is started, how many programs fill the device."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from sparseworks.core.errors import DtypeError, KernelError
from sparseworks.exec.format import FLOATS

_FEW = 4  # multiprocessors of the interpreter: enough that splits and their merge are exercised


@triton.jit
def _probe():
    pass


INTERPRETED = not isinstance(_probe, triton.runtime.JITFunction)


def run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Start `kernel` on `grid` programs, on the GPU where its first argument lies; nothing where the grid is empty."""
    if not all(grid):
        return
    device = arguments[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*arguments, **options)
    else:
        kernel[grid](*arguments, **options)


def together(what: str, *tensors: Tensor | None) -> torch.device:
    """The device that all `tensors` share, after making sure that a kernel may follow their addresses.

    Raises:
        KernelError: tensors on different devices, or on the CPU outside the interpreter, or not contiguous.
    """
    given = [t for t in tensors if t is not None]
    devices = {t.device for t in given}
    if len(devices) != 1:
        raise KernelError(f"{what} takes tensors of one device, got {sorted(map(str, devices))}.")
    device = devices.pop()
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        raise KernelError(f"{what} runs on a GPU; its tensors are on {device}. Move them with `.to('cuda')`.")
    if any(not t.is_contiguous() for t in given):
        raise KernelError(f"{what} takes contiguous tensors; call `.contiguous()` first.")
    return device


def floats(what: str, *tensors: Tensor) -> torch.dtype:
    """The floating type that all `tensors` share.

    Raises:
        DtypeError: different types, or one that the kernels do not multiply.
    """
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) != 1 or not dtypes <= set(FLOATS):
        raise DtypeError(
            f"{what} takes tensors of one type out of float16, bfloat16 and float32, got {sorted(map(str, dtypes))}."
        )
    return dtypes.pop()


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _FEW


def splits(device: torch.device, programs: int, most: int, waves: int = 2) -> int:
    """Into how many parts to cut the work of each of `programs` programs (at most `most`) to fill the device `waves` times."""
    return max(1, min(most, triton.cdiv(waves * multiprocessors(device), max(programs, 1))))
