"""Shared mathematics, batched: least squares on a support, OBS sweeps, ADMM, dynamic swaps, pursuits. Knows weights only as matrices."""

from sparseworks.solve.admm import ADMM
from sparseworks.solve.dsnot import DSnoT
from sparseworks.solve.obs import ObsSweep
from sparseworks.solve.pursuit import omp

__all__ = ["ADMM", "DSnoT", "ObsSweep", "omp"]
