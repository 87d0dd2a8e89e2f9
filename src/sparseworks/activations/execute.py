"""Kernels in the place of masked layers, where they are measured to be faster than the dense layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from sparseworks.core.support import Support
from sparseworks.exec.executing import ExecutingLinear, faster, speed
from sparseworks.exec.masked import MaskedLinear

if TYPE_CHECKING:
    from sparseworks.activations.sparsify import SparseActivations


def executed(model: nn.Module, done: SparseActivations, supports: Mapping[str, Support]) -> SparseActivations:
    """The rows with what was measured; layers that are not faster for one token become dense again.

    Layers of one shape, rule and density (to 2 %) are measured once. Masks of activation functions stay as they are.
    """
    known: dict[Any, float] = {}
    rows = []
    for row in done.rows:
        layer = model.get_submodule(row.name) if row.name in dict(model.named_modules()) else None
        if not isinstance(layer, MaskedLinear):
            rows.append(row)
            continue
        support = supports.get(row.name)
        density = row.density if row.read is None else row.read
        key = _key(layer, density, support)
        if key not in known:
            known[key] = speed(layer, density, support)
        wins = faster(known[key])
        model.set_submodule(row.name, ExecutingLinear(layer, support) if wins else layer.dense())
        rows.append(replace(row, executed=known[key], read=row.read if wins else 1.0))
    return replace(done, rows=tuple(rows))


def _key(layer: MaskedLinear, density: float, support: Support | None) -> Any:
    kept = 1.0 if support is None else support.density
    kind = (layer.rule.threshold is None, layer.rule.exact, layer.factor is None)
    rank = 0 if layer.right is None else layer.right.shape[0]
    return (
        layer.weight.shape,
        layer.weight.dtype,
        layer.bias is None,
        kind,
        rank,
        round(50 * density),
        round(50 * kept),
    )
