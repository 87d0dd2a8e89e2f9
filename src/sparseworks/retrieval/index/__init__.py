"""An index of sparse vectors on disk: immutable mapped segments, a manifest, searches exact or to a recall."""

from __future__ import annotations

from sparseworks.retrieval.index.index import Index
from sparseworks.retrieval.index.segment import Segment, Setting
from sparseworks.retrieval.index.snapshot import Hits, Snapshot

__all__ = ["Hits", "Index", "Segment", "Setting", "Snapshot"]
