"""Learned sparse retrieval and its index: encoders into term weights, indexes of them, fusion and feedback."""

from __future__ import annotations

from sparseworks.retrieval import methods as methods
from sparseworks.retrieval import pages as pages
from sparseworks.retrieval.index import Hits as Hits
from sparseworks.retrieval.index import Index as Index
from sparseworks.retrieval.vectors import SparseVectors as SparseVectors
