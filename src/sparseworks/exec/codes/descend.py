"""Coordinate descent on inner products, many rows at a time: the compiled inner loop of the lasso and its relatives."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import DtypeError, KernelError, ShapeError
from sparseworks.exec.native import native, why_missing

Kind = Literal["l1", "non_negative", "mcp"]
_KINDS = {"l1": 0, "non_negative": 1, "mcp": 2}


def can_descend(gram: Tensor) -> bool:
    """Whether `descend` runs on this type and device."""
    return native() is not None and gram.is_cpu and gram.dtype in (torch.float32, torch.float64)


def descend(
    gram: Float[Tensor, "atoms atoms"],
    right: Float[Tensor, "rows atoms"],
    slopes: Float[Tensor, " atoms"],
    scale: Float[Tensor, " rows"],
    start: Float[Tensor, "rows atoms"],
    tolerance: Float[Tensor, " rows"],
    most: int,
    *,
    kind: Kind = "l1",
    ridge: float = 0.0,
    gamma: float = torch.inf,
) -> tuple[Float[Tensor, "rows atoms"], Int[Tensor, " rows"]]:
    """argmin_z z G z / 2 - <right, z> + ridge ||z||^2 / 2 + sum_j g_j(z_j) of every row, and the passes it took.

    g_j = scale_row * slopes_j * |z_j| ("l1", and "non_negative" where z_j >= 0), or the minimax concave penalty of that slope
    and of `gamma` ("mcp", without a ridge). A row is done when no coordinate violates its optimality condition by more than
    `tolerance`, after `most` passes over its working set, or when rounding lets nothing move. Nothing has a gradient.

    Raises:
        ShapeError: operands that do not fit.
        DtypeError: not all float32, or all float64.
        KernelError: no compiled extension, or not on the CPU.
    """
    module = native()
    if module is None or not gram.is_cpu:
        raise KernelError(f"Coordinate descent is compiled for the CPU only: {why_missing() or gram.device}.")
    shapes = (
        (len(gram),) * 2,
        (len(right), len(gram)),
        (len(gram),),
        (len(right),),
        (len(right), len(gram)),
        (len(right),),
    )
    operands = (gram, right, slopes, scale, start, tolerance)
    for operand, shape in zip(operands, shapes, strict=True):
        if tuple(operand.shape) != shape:
            raise ShapeError(
                f"Operands of {len(right)} rows and {len(gram)} atoms: {tuple(operand.shape)} must be {shape}."
            )
        if operand.dtype != gram.dtype or gram.dtype not in (torch.float32, torch.float64):
            raise DtypeError(f"Operands are all float32 or all float64, got {gram.dtype} and {operand.dtype}.")
    held = [operand.detach().contiguous() for operand in (gram, right, slopes, scale, tolerance)]
    z = start.detach().clone(memory_format=torch.contiguous_format)
    epochs = torch.zeros(len(right), dtype=torch.long)
    module.codes_descend(
        gram.dtype is torch.float64, *(operand.data_ptr() for operand in held), z.data_ptr(), epochs.data_ptr(),
        len(right), len(gram), most, _KINDS[kind], ridge, gamma, torch.get_num_threads(),
    )  # fmt: skip
    return z, epochs
