"""The registered methods of codes, one file a group."""

from __future__ import annotations

from sparseworks.codes.methods import analysis as analysis
from sparseworks.codes.methods import autoencoders as autoencoders
from sparseworks.codes.methods import convex as convex
from sparseworks.codes.methods import decompose as decompose
from sparseworks.codes.methods import models as models
from sparseworks.codes.methods import numerics as numerics
from sparseworks.codes.methods import projections as projections
from sparseworks.codes.methods import pursuits as pursuits
from sparseworks.codes.methods import steering as steering
