"""Sparse codes: coding in a dictionary, learning one, autoencoders, low-rank plus sparse, sparse numerics."""

from __future__ import annotations

from sparseworks.codes import methods as methods
from sparseworks.codes import pages as pages
from sparseworks.codes.autoencoders import SparseAutoencoder, train_autoencoder, train_autoencoders
from sparseworks.codes.dictionary import learn_dictionary
from sparseworks.codes.method import CodeMethod, CodesRoutine, code

__all__ = [
    "CodeMethod",
    "CodesRoutine",
    "SparseAutoencoder",
    "code",
    "learn_dictionary",
    "train_autoencoder",
    "train_autoencoders",
]
