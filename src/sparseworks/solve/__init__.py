"""Shared mathematics, batched: least squares on a support, OBS sweeps, ADMM, pursuits. Knows weights only as matrices."""

from sparseworks.solve.admm import ADMM
from sparseworks.solve.obs import ObsSweep
from sparseworks.solve.pursuit import omp, omp_round

__all__ = ["ADMM", "ObsSweep", "omp", "omp_round"]
