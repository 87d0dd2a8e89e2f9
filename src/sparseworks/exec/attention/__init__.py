"""Attention over what is kept: blocks or columns of a prefill, pages of a cache, lists of tokens; parts merge by their log-sum-exp."""

from __future__ import annotations

from sparseworks.exec.attention.blocks import attend
from sparseworks.exec.attention.cache import KeyValueCache
from sparseworks.exec.attention.columns import attend_columns, peaks
from sparseworks.exec.attention.largest import best, cut
from sparseworks.exec.attention.merge import merge
from sparseworks.exec.attention.pages import KeyPages
from sparseworks.exec.attention.tokens import attend_ranges, attend_tokens

__all__ = [
    "KeyPages",
    "KeyValueCache",
    "attend",
    "attend_columns",
    "attend_ranges",
    "attend_tokens",
    "best",
    "cut",
    "merge",
    "peaks",
]
