"""Larger sparse layers at the cost of dense ones, for training from scratch."""

from __future__ import annotations

from sparseworks.weights.isoflop.layers import DopedLayer as DopedLayer
from sparseworks.weights.isoflop.layers import FactorisedLayer as FactorisedLayer
from sparseworks.weights.isoflop.layers import ParallelLayer as ParallelLayer
from sparseworks.weights.isoflop.transform import TRANSFORMS as TRANSFORMS
from sparseworks.weights.isoflop.transform import Enlarged as Enlarged
from sparseworks.weights.isoflop.transform import IsoFlop as IsoFlop
from sparseworks.weights.isoflop.transform import isoflop as isoflop
