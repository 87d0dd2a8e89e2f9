"""Timing a model beside its dense twin on one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sparseworks.exec import measure
from sparseworks.stream.memory import tokens_in
from sparseworks.stream.tree import call


def forward(model: nn.Module, batch: Any) -> Any:
    """One forward pass without gradients."""
    with torch.inference_mode():
        return call(model, batch)


def rows_of(batch: Any) -> int:
    """Rows of the matrix products that a batch makes: its tokens, at least one."""
    return max(1, tokens_in(batch))


def time_case(name: str, dense: nn.Module, fast: nn.Module, batch: Any) -> dict[str, Any]:
    """Both models on one batch, interleaved in one process; `spread` is the interquartile range of the ratio over its median."""
    timing = measure.compare({"dense": lambda: forward(dense, batch), "sparse": lambda: forward(fast, batch)})
    ratio = timing.ratio("dense", "sparse")
    return {
        "name": name,
        "rows": rows_of(batch),
        "dense_ms": timing["dense"].ms,
        "sparse_ms": timing["sparse"].ms,
        "ratio": ratio.median,
        "spread": (ratio.high - ratio.low) / ratio.median,
    }
