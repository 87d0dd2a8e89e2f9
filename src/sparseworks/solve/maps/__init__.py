"""Linear maps: one file each."""

from __future__ import annotations

from sparseworks.solve.linear import MAPS, LinearMap
from sparseworks.solve.maps.atoms import Atoms
from sparseworks.solve.maps.composed import Composed
from sparseworks.solve.maps.convolution import Convolution
from sparseworks.solve.maps.cosine import Cosine
from sparseworks.solve.maps.differences import Differences
from sparseworks.solve.maps.fourier import Fourier, ShortTime
from sparseworks.solve.maps.sampled import Sampled
from sparseworks.solve.maps.views import Adjoint, Scaled

__all__ = [
    "MAPS",
    "Adjoint",
    "Atoms",
    "Composed",
    "Convolution",
    "Cosine",
    "Differences",
    "Fourier",
    "LinearMap",
    "Sampled",
    "Scaled",
    "ShortTime",
]
