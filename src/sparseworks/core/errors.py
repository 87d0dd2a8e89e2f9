"""Every exception Sparseworks raises on purpose: each says what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SparseworksError(Exception):
    """Root of all errors raised by this library."""


class ShapeError(SparseworksError, ValueError):
    """A tensor has the wrong number of dimensions or sizes that do not fit together."""


class DtypeError(SparseworksError, TypeError):
    """A tensor or value has a type that the operation cannot use."""


class NonFiniteError(SparseworksError, ValueError):
    """NaN (or infinity, where it has no meaning) in scores, weights or statistics."""


class PatternError(SparseworksError, ValueError):
    """A pattern does not divide a shape, or its text cannot be read."""


class BudgetError(SparseworksError, ValueError):
    """A budget is out of range or cannot be met."""


class MissingStatError(SparseworksError, LookupError):
    """A score or repair needs a statistic that was not gathered."""


class CalibrationError(SparseworksError, ValueError):
    """Calibration or evaluation data are empty, unreadable or do not fit the model."""


class RecipeError(SparseworksError, ValueError):
    """A recipe has unknown keys or values that cannot be read."""


class CheckpointError(SparseworksError, ValueError):
    """A saved folder is damaged, half-written, or of a newer schema."""


class KernelError(SparseworksError, RuntimeError):
    """A format or kernel refuses a call, or its buffers are damaged."""


class ModelError(SparseworksError, ValueError):
    """A model cannot be found, loaded, or has nothing that can be made sparse."""


class UnknownNameError(SparseworksError, LookupError):
    """A name is not registered; the message lists the nearest known names."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = sorted(known)
        near = get_close_matches(str(name).lower(), known, n=3)
        hint = (
            f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else f"Known: {', '.join(known) or 'none'}."
        )
        super().__init__(f"Unknown {kind} {name!r}. {hint}")
        self.kind, self.name, self.known = kind, name, tuple(known)

    def __reduce__(self) -> tuple[type, tuple[str, str, tuple[str, ...]]]:
        return type(self), (
            self.kind,
            self.name,
            self.known,
        )  # the message alone would not rebuild it in another process
