"""Least squares on growing sets of atoms: one Cholesky factor a signal, which takes a row when the signal takes an atom."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.errors import BudgetError, DtypeError, KernelError, ShapeError
from sparseworks.exec.native import native
from sparseworks.exec.search.rows import Guard

_GROUP = 16  # signals interleaved by the kernel


class BatchCholesky:
    """L_b L_b^T = G[S_b, S_b] for every signal b, whose set S_b of atoms grows by one atom a round.

    Solves G[S_b, S_b] z = right[b, S_b]: with G = D D^T and right = X D^T these are the coefficients of matching pursuit.
    An atom whose pivot is not above `least` of its diagonal (a repeated or dependent one, or NaN) is refused: its place in
    the round is a row of the identity, its coefficient 0. float32 on the CPU runs compiled, all else in torch.

    Args:
        gram: inner products of the atoms; symmetric, not copied.
        right: one row of right-hand sides a signal, not copied.
        most: rounds there is room for.
        least: smallest pivot accepted, as a share of the diagonal; None: 10 units of rounding of the type.

    Raises:
        ShapeError: `gram` not square, or `right` with another number of atoms.
        DtypeError: other types than float32 and float64, or two of them, or two devices.
        BudgetError: `most` is not in 0..atoms.

    Source: Rubinstein, Zibulevsky and Elad, 2008 (Batch-OMP).
    """

    def __init__(
        self,
        gram: Float[Tensor, "atoms atoms"],
        right: Float[Tensor, "signals atoms"],
        most: int,
        *,
        least: float | None = None,
    ) -> None:
        if gram.dim() != 2 or right.dim() != 2 or not gram.shape[0] == gram.shape[1] == right.shape[1]:
            raise ShapeError(
                f"Inner products {tuple(gram.shape)} must be square, and right-hand sides {tuple(right.shape)} as wide."
            )
        if gram.dtype not in (torch.float32, torch.float64) or (gram.dtype, gram.device) != (right.dtype, right.device):
            raise DtypeError(
                f"Needs float32 or float64, twice the same: {gram.dtype} on {gram.device}, {right.dtype} on {right.device}."
            )
        if not 0 <= most <= len(gram):
            raise BudgetError(f"Cannot choose {most} of {len(gram)} atoms.")
        gram, right = gram.detach().contiguous(), right.detach().contiguous()
        least = 10 * torch.finfo(gram.dtype).eps if least is None else least
        module = native()
        fast = module is not None and gram.is_cpu and gram.dtype is torch.float32 and len(gram) < 2**31
        state = _Interleaved if fast else _Triangles
        self._state = state(gram, right, most, least)
        self.most, self.size = most, 0

    def append(self, atoms: Int[Tensor, " signals"]) -> Bool[Tensor, " signals"]:
        """Give every signal one more atom (-1: none); True where it was taken.

        Raises:
            BudgetError: `most` rounds have passed.
            ShapeError: not one int64 atom a signal, or one out of range.
            KernelError: the factors were written to.
        """
        gram, right = self._state.gram, self._state.right
        if self.size == self.most:
            raise BudgetError(f"There is room for {self.most} atoms a signal and no more.")
        if atoms.shape != right.shape[:1] or atoms.dtype is not torch.int64:
            raise ShapeError(f"Needs one int64 atom for each of {len(right)} signals, got {tuple(atoms.shape)}.")
        atoms = atoms.to(gram.device).contiguous()
        if atoms.numel() and not -1 <= int(atoms.min()) <= int(atoms.max()) < len(gram):
            raise ShapeError(f"Atoms must lie in [0, {len(gram)}), or be -1.")
        taken = self._state.append(atoms, self.size)
        self.size += 1
        return taken

    def solve(self) -> Float[Tensor, "signals size"]:
        """Coefficients z of every signal, in the order its atoms were appended; 0 where one was refused.

        Raises:
            KernelError: the factors were written to.
        """
        return self._state.solve(self.size)


class _Triangles:
    """The reference: dense triangles and torch's solver."""

    def __init__(self, gram: Tensor, right: Tensor, most: int, least: float) -> None:
        self.gram, self.right, self.least = gram, right, least
        self._lower = gram.new_zeros(len(right), most, most)
        self._known = gram.new_zeros(len(right), most)
        self._chosen = torch.full((len(right), most), -1, device=gram.device)

    def append(self, atoms: Tensor, n: int) -> Tensor:
        chosen, at = self._chosen[:, :n], atoms.clamp(min=0)
        column = self.gram[at[:, None], chosen.clamp(min=0)].masked_fill(chosen < 0, 0)
        w = torch.linalg.solve_triangular(self._lower[:, :n, :n], column[:, :, None], upper=False)[:, :, 0]
        own = self.gram[at, at]
        pivot = own - w.square().sum(1)
        taken = (atoms >= 0) & (pivot > self.least * own) & pivot.isfinite()
        root = torch.where(taken, pivot, 1).sqrt()
        value = (self.right.gather(1, at[:, None])[:, 0] - (w * self._known[:, :n]).sum(1)) / root
        self._lower[:, n, :n] = torch.where(taken[:, None], w, 0)
        self._lower[:, n, n] = root
        self._known[:, n] = torch.where(taken, value, 0)
        self._chosen[:, n] = torch.where(taken, atoms, -1)
        return taken

    def solve(self, n: int) -> Tensor:
        upper = self._lower[:, :n, :n].mT
        return torch.linalg.solve_triangular(upper, self._known[:, :n, None], upper=True)[:, :, 0]


class _Interleaved:
    """The kernel's state: triangles of sixteen signals side by side."""

    def __init__(self, gram: Tensor, right: Tensor, most: int, least: float) -> None:
        self.gram, self.right, self.least, self._most = gram, right, least, most
        groups = -(-len(right) // _GROUP)
        with torch.inference_mode(False):
            self._factor = gram.new_empty(groups, most * (most + 1) // 2, _GROUP)
            self._known = gram.new_empty(groups, most, _GROUP)
            self._chosen = gram.new_empty(groups, most, _GROUP, dtype=torch.int32)
        self._guard = Guard(self._factor, self._known, self._chosen)

    def append(self, atoms: Tensor, n: int) -> Tensor:
        taken = atoms.new_empty(len(atoms), dtype=torch.bool)
        self._module().cholesky_append(
            *self._factors(n), self.gram.data_ptr(), self.right.data_ptr(), len(self.gram), atoms.data_ptr(),
            self._chosen.data_ptr(), taken.data_ptr(), self.least,
        )  # fmt: skip
        return taken

    def solve(self, n: int) -> Tensor:
        out = self.right.new_empty(len(self.right), n)
        self._module().cholesky_solve(*self._factors(n), out.data_ptr())
        return out

    def _module(self) -> Any:
        module = native()
        if module is None:
            raise KernelError("The compiled extension that began these factors is gone.")
        self._guard.check()
        return module

    def _factors(self, n: int) -> tuple[int, ...]:
        return self._factor.data_ptr(), self._known.data_ptr(), len(self.right), n, self._most, torch.get_num_threads()
