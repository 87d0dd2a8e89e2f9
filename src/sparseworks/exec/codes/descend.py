"""Coordinate descent: on inner products, many rows at a time, and on the residual of one; the compiled inner loops of the lasso."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import DtypeError, KernelError, ShapeError
from sparseworks.exec.native import native, why_missing

Kind = Literal["l1", "non_negative", "mcp"]
_KINDS = {"l1": 0, "non_negative": 1, "mcp": 2}


def can_descend(operand: Tensor) -> bool:
    """Whether `descend` and `descend_columns` run on this type and device."""
    return native() is not None and operand.is_cpu and operand.dtype in (torch.float32, torch.float64)


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
    module = _module(gram)
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
        _check(operand, shape, gram.dtype, f"{len(right)} rows and {len(gram)} atoms")
    held = [operand.detach().contiguous() for operand in (gram, right, slopes, scale, tolerance)]
    z = start.detach().clone(memory_format=torch.contiguous_format)
    epochs = torch.zeros(len(right), dtype=torch.long)
    module.codes_descend(
        gram.dtype is torch.float64, *(operand.data_ptr() for operand in held), z.data_ptr(), epochs.data_ptr(),
        len(right), len(gram), most, _KINDS[kind], ridge, gamma, torch.get_num_threads(),
    )  # fmt: skip
    return z, epochs


def descend_columns(
    atoms: Float[Tensor, "all features"],
    kept: Int[Tensor, " atoms"],
    residual: Float[Tensor, " features"],
    slopes: Float[Tensor, " atoms"],
    curvature: Float[Tensor, " atoms"],
    start: Float[Tensor, " atoms"],
    goal: float,
    most: int,
    *,
    kind: Kind = "l1",
    ridge: float = 0.0,
    gamma: float = torch.inf,
) -> tuple[Float[Tensor, " atoms"], int, bool]:
    """argmin_z ||y - z D||^2 / 2 + ridge ||z||^2 / 2 + sum_j g_j(z_j), D = atoms[kept]; as `descend`, without inner products.

    Args:
        residual: y - start D.
        curvature: squared norms of the kept atoms.
        most: atoms it may look at, to the end of the pass that exceeds them.

    Returns:
        z, how many atoms it looked at, and whether it came to a pass whose coordinates violated their optimality conditions
        by no more than `goal`, each before it moved.

    Raises:
        ShapeError: operands that do not fit, or kept atoms that there are not.
        DtypeError: not all float32, or all float64.
        KernelError: no compiled extension, or not on the CPU.
    """
    module = _module(atoms)
    count, features = len(kept), atoms.shape[1]
    sizes = (len(atoms), features), (features,), (count,), (count,), (count,)
    for operand, shape in zip((atoms, residual, slopes, curvature, start), sizes, strict=True):
        _check(operand, shape, atoms.dtype, f"{count} atoms of {features} features")
    if kept.dim() != 1 or not kept.is_cpu or not goal >= 0:
        raise ShapeError(
            f"Atoms that are kept are listed in one dimension on the CPU, down to a goal >= 0; got {tuple(kept.shape)}, {goal}."
        )
    if count and not 0 <= int(kept.min()) <= int(kept.max()) < len(atoms):
        raise ShapeError(
            f"Atoms that are kept must be rows of {len(atoms)}, got {int(kept.min())} to {int(kept.max())}."
        )
    held = [operand.detach().contiguous() for operand in (atoms, kept.long(), slopes, curvature)]
    z, rest = (operand.detach().clone(memory_format=torch.contiguous_format) for operand in (start, residual))
    visits = torch.zeros(1, dtype=torch.long)
    done = module.codes_descend_columns(
        atoms.dtype is torch.float64, *(operand.data_ptr() for operand in (*held, z, rest, visits)), count, features, most,
        goal, _KINDS[kind], ridge, gamma,
    )  # fmt: skip
    return z, int(visits), bool(done)


def _module(operand: Tensor) -> Any:
    module = native()
    if module is None or not operand.is_cpu:
        raise KernelError(f"Coordinate descent is compiled for the CPU only: {why_missing() or operand.device}.")
    return module


def _check(operand: Tensor, shape: tuple[int, ...], dtype: torch.dtype, size: str) -> None:
    if tuple(operand.shape) != shape:
        raise ShapeError(f"Operands of {size}: {tuple(operand.shape)} must be {shape}.")
    if not operand.is_cpu:
        raise KernelError(f"Operands of the compiled coordinate descent are on the CPU, one is on {operand.device}.")
    if operand.dtype != dtype or dtype not in (torch.float32, torch.float64):
        raise DtypeError(f"Operands are all float32 or all float64, got {dtype} and {operand.dtype}.")
