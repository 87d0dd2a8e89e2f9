"""The registered methods of codes, one file a group."""

from sparseworks.codes.methods import convex as convex
