"""Shared mathematics, batched: least squares on a support, OBS sweeps, ADMM, pursuits. Knows weights only as matrices."""

from sparseworks.solve.obs import ObsSweep

__all__ = ["ObsSweep"]
