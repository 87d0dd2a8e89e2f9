"""Coders: one file each."""

from __future__ import annotations

from sparseworks.solve.coder import CODERS, Coder, Solution

__all__ = ["CODERS", "Coder", "Solution"]
