"""Shared mathematics, batched: least squares on a support, OBS sweeps, ADMM, pursuits. Knows weights only as matrices."""

from sparseworks.solve.least_squares import least_squares, subsystems
from sparseworks.solve.obs import ObsSweep, sweep

__all__ = ["ObsSweep", "least_squares", "subsystems", "sweep"]
