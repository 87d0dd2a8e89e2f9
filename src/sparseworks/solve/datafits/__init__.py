"""Datafits: one file each."""

from __future__ import annotations

from sparseworks.solve.datafit import DATAFITS, Datafit
from sparseworks.solve.datafits.quadratic import Quadratic

__all__ = ["DATAFITS", "Datafit", "Quadratic"]
