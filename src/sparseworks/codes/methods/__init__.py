"""The registered methods of codes, one file a group."""

from sparseworks.codes.methods import convex as convex
from sparseworks.codes.methods import decompose as decompose
from sparseworks.codes.methods import numerics as numerics
