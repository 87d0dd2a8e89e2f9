"""The kinds of published methods that make codes: a coder for a given dictionary, and algorithms with operands of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from sparseworks.core.config import NOUNS
from sparseworks.core.published import METHODS, Published, Source
from sparseworks.core.routine import Routine
from sparseworks.solve.coder import CODERS, Coder, Solution
from sparseworks.solve.datafit import DATAFITS, Datafit
from sparseworks.solve.linear import LinearMap
from sparseworks.solve.penalty import PENALTIES, Penalty

NOUNS["coder"] = (Coder, CODERS)
NOUNS["penalty"] = (Penalty, PENALTIES)
NOUNS["datafit"] = (Datafit, DATAFITS)


@dataclass(frozen=True)
class CodeMethod(Published):
    """Codes of signals in a given dictionary, by one coder.

    Attributes:
        coder: the algorithm, with its budget.
    """

    family: ClassVar[str] = "codes"
    kind: ClassVar[str] = "codes"
    used_by: ClassVar[str] = "sw.code(signals, dictionary, method)"
    PARTS: ClassVar[Mapping[str, str]] = {"coder": "coder"}

    coder: Coder

    def with_(self, **changes: Any) -> CodeMethod:
        """A changed copy; fields of the coder may be named directly: `sw.method("omp", budget=Count(8))`.

        Raises:
            RecipeError: unknown option.
        """
        known = {f.name for f in fields(self.coder)} if is_dataclass(self.coder) else set()
        inner = {name: value for name, value in changes.items() if name in known}
        changed = super().with_(**{k: v for k, v in changes.items() if k not in inner})
        return replace(changed, coder=replace(changed.coder, **inner)) if inner else changed  # type: ignore[type-var]


@dataclass(frozen=True)
class CodesRoutine(Routine):
    """An algorithm of sparse coding, decomposition or sparse numerics that is called with operands of its own."""

    family: ClassVar[str] = "codes"
    kind: ClassVar[str] = "routines of codes"
    used_by: ClassVar[str] = "sw.method(name)(operands)"


def add_coder(name: str, coder: Coder, source: Source, claims: str, **labels: Any) -> CodeMethod:
    """Register a coder as a method under `name`; `labels` as in `Published`."""
    method = CodeMethod(name, coder, source=source, claims=claims, **labels)
    METHODS.register(name)(method)
    return method


def code(
    signals: Float[Tensor, "rows m"],
    dictionary: LinearMap | Float[Tensor, "atoms features"],
    method: str | CodeMethod,
    **changes: Any,
) -> Solution:
    """Sparse codes of signals: z D ~ y, row by row.

    Args:
        signals: one a row.
        dictionary: one atom a row, or a linear map from codes to signals.
        method: a method of codes, or its name; `changes` are options of its coder.

    Raises:
        UnknownNameError: the name is not registered.
        RecipeError: a method of another kind, or an unknown option.
        ShapeError, DtypeError, NonFiniteError, KernelError, CalibrationError: as `Coder`.
    """
    chosen = CodeMethod.of(method)
    return (chosen.with_(**changes) if changes else chosen).coder(dictionary, signals)
