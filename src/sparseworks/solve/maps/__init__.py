"""Linear maps: one file each."""

from __future__ import annotations

from sparseworks.solve.linear import MAPS, LinearMap
from sparseworks.solve.maps.atoms import Atoms

__all__ = ["MAPS", "Atoms", "LinearMap"]
