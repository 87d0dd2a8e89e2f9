"""Sparse attention and the KV cache. The package itself may be called: `with sw.attention(model, method): ...`."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

from sparseworks.attention import methods as methods
from sparseworks.attention import page as page
from sparseworks.attention import trained as trained
from sparseworks.attention.heads import Clip, Heads
from sparseworks.attention.kept import Kept, attend_kept
from sparseworks.attention.method import AttentionMethod, blocks, pages, stripes
from sparseworks.attention.order import ORDERS, Order
from sparseworks.attention.rest import RESTS, Rest
from sparseworks.attention.run import dense_attention, sparse_attention
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.select import select
from sparseworks.attention.timing import TIMINGS, Timing

__all__ = [
    "ATTENTION_SCORES",
    "ORDERS",
    "RESTS",
    "TIMINGS",
    "AttentionMethod",
    "AttentionScore",
    "Clip",
    "Heads",
    "Kept",
    "Order",
    "Rest",
    "Timing",
    "attend_kept",
    "blocks",
    "dense_attention",
    "pages",
    "select",
    "sparse_attention",
    "stripes",
]


class _Callable(ModuleType):
    """`sw.attention` names this package and the context it is used by, see `sparseworks.attention.hf.attention`."""

    def __call__(self, *args: Any, **options: Any) -> AbstractContextManager[Any]:
        from sparseworks.attention.hf import attention

        return attention(*args, **options)


sys.modules[__name__].__class__ = _Callable
