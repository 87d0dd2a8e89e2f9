"""Repairs: how the error is made good once the support is chosen."""

from sparseworks.repair.values import BiasCorrection, LeastSquares

__all__ = ["BiasCorrection", "LeastSquares"]
