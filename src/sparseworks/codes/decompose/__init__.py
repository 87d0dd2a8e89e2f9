"""Sums of simple parts: low rank plus sparse, spectra times abundances, signals with gaps."""
