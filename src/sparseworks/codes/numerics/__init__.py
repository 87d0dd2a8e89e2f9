"""Sparse numerics: projections, updated factors, transport, binary codes, graphs."""
