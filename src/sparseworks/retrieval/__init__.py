"""Learned sparse retrieval and its index: encoders into term weights, indexes of them, fusion and feedback."""

from __future__ import annotations

from sparseworks.retrieval import methods as methods
