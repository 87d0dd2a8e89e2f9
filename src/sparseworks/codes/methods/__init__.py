"""The registered methods of codes, one file a group."""

from sparseworks.codes.methods import decompose as decompose
from sparseworks.codes.methods import models as models
from sparseworks.codes.methods import numerics as numerics
from sparseworks.codes.methods import projections as projections
