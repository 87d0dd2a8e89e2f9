"""Coder: from signals and a dictionary to sparse codes; whoever sparsifies a signal is one of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.codes import Codes
from sparseworks.core.errors import CalibrationError, DtypeError, KernelError, NonFiniteError, ShapeError
from sparseworks.core.registry import Registry
from sparseworks.solve.datafit import Datafit
from sparseworks.solve.linear import LinearMap
from sparseworks.solve.maps import Atoms

CODERS: Registry[type[Coder]] = Registry("coder", "sparseworks.solve.coders")


@dataclass(frozen=True)
class Solution:
    """What a coder found, and how good it is known to be.

    Attributes:
        z: (rows, *domain).
        steps: int64 (rows,): iterations that changed the row.
        certificate: float (rows,): the number that `stop` was compared with; what it is, says `proves`.
        converged: bool (rows,): the certificate is not above the tolerance.
        proves: "duality gap", "violation", "residual" or "change".
    """

    z: Float[Tensor, "rows n"]
    steps: Int[Tensor, " rows"]
    certificate: Float[Tensor, " rows"]
    converged: Bool[Tensor, " rows"]
    proves: str

    def codes(self) -> Codes:
        """The entries that are not 0."""
        return Codes.from_dense(self.z.flatten(1))


class Coder:
    """`coder(dictionary, signals) -> Solution`: sparse z with A z ~ y, row by row; a frozen dataclass, registered in `CODERS`."""

    registered_name: ClassVar[str]

    def refuses(self, dictionary: LinearMap) -> str | None:
        """Why it cannot work with this map, in a sentence; None where it can."""
        del dictionary
        return None

    def solve(self, dictionary: LinearMap, signals: Float[Tensor, "rows m"], start: Tensor | None) -> Solution:
        """The work itself, on operands that were checked."""
        raise NotImplementedError

    def __call__(
        self,
        dictionary: LinearMap | Float[Tensor, "atoms features"],
        signals: Float[Tensor, "rows m"],
        start: Float[Tensor, "rows n"] | None = None,
    ) -> Solution:
        """Codes of every row.

        Args:
            dictionary: a linear map from codes to signals, or a matrix with one atom a row.
            signals: (rows, *codomain).
            start: codes to begin from, for coders that iterate on values.

        Raises:
            ShapeError: signals or start that do not fit the map.
            DtypeError: another precision or device than the map's.
            NonFiniteError: NaN or infinity.
            KernelError: this coder cannot work with this map; the message says why.
            CalibrationError: signals that its datafit cannot explain, such as labels that are not -1 and 1.
        """
        a = Atoms(dictionary) if isinstance(dictionary, Tensor) else dictionary
        why = self.refuses(a)
        if why is not None:
            raise KernelError(why)
        _check("Signals", signals, a.codomain, a)
        datafit: Datafit | None = getattr(self, "datafit", None)
        why = datafit.refuses(signals) if datafit is not None else None
        if why is not None:
            raise CalibrationError(why)
        if start is not None:
            _check("The codes to start from", start, a.domain, a)
            if len(start) != len(signals):
                raise ShapeError(f"{len(signals)} signals, but {len(start)} codes to start from.")
        return self.solve(a, signals, start)


def _check(what: str, given: Tensor, shape: tuple[int, ...], a: LinearMap) -> None:
    if given.dim() != len(shape) + 1 or tuple(given.shape[1:]) != shape:
        raise ShapeError(f"{what} must be (rows, {', '.join(map(str, shape))}), got {tuple(given.shape)}.")
    if _real(given.dtype) != _real(a.dtype) or given.device != a.device:
        raise DtypeError(
            f"{what} are {given.dtype} on {given.device}, the dictionary {a.dtype} on {a.device}: convert one of them."
        )
    if not bool(torch.isfinite(given).all()):
        raise NonFiniteError(f"{what} hold NaN or infinity.")


def _real(dtype: torch.dtype) -> torch.dtype:
    return {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)
