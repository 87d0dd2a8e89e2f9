"""Learned sparse retrieval and its index: encoders into term weights, indexes of them, fusion and feedback."""

from __future__ import annotations

from sparseworks.retrieval import methods as methods
from sparseworks.retrieval import pages as pages
