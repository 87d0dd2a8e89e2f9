"""Penalties: one file each."""

from __future__ import annotations

from sparseworks.solve.penalties.cel0 import CEL0
from sparseworks.solve.penalties.half import Half
from sparseworks.solve.penalties.l0 import L0
from sparseworks.solve.penalties.l1 import L1
from sparseworks.solve.penalty import PENALTIES, Penalty

__all__ = ["CEL0", "L0", "L1", "PENALTIES", "Half", "Penalty"]
