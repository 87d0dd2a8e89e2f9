"""Penalties: one file each."""

from __future__ import annotations

from sparseworks.solve.penalties.l1 import L1
from sparseworks.solve.penalty import PENALTIES, Penalty

__all__ = ["L1", "PENALTIES", "Penalty"]
