"""The registered methods of retrieval, one file a group."""

from __future__ import annotations

from sparseworks.retrieval.methods import fusion as fusion
