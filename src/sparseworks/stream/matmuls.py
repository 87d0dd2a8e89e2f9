"""Inputs of weights that no module call shows: expert stacks and torch's MultiheadAttention, seen as matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparseworks.core.site import Site

_PRODUCTS = ("mm", "addmm", "linear", "bmm", "baddbmm", "matmul")
_GROUPED = ("_grouped_mm", "grouped_mm_fallback")  # (tokens sorted by expert, stack of weights, where each expert ends)


class Matmuls(TorchDispatchMode):
    """While active, reports `(site, input)` for every matrix product one operand of which is a view of a site's storage.

    Args:
        sites: sites to watch for.
        report: called with the site and the other operand, `(tokens, cols)`.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], report: Callable[[Site, Tensor], None]):
        super().__init__()
        self._report = report
        self._spans: dict[int, list[tuple[int, int, Site]]] = {}
        for site in sites:
            p = site.tensor(model)
            view = site.view(p.detach())
            start = int(view.storage_offset())
            span = (start, start + _extent(view), site)
            self._spans.setdefault(p.untyped_storage().data_ptr(), []).append(span)

    def __enter__(self) -> Matmuls:
        self._fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # the fused path shows no product
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.backends.mha.set_fastpath_enabled(self._fast)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the product, report its operands."""
        del types
        name = func.overloadpacket.__name__
        if name in _GROUPED:
            self._grouped(args[0], args[1], args[2] if len(args) > 2 else (kwargs or {}).get("offs"))
        elif name in _PRODUCTS:
            operands = [a for a in args if isinstance(a, Tensor) and a.dim() >= 2]
            for i, weight in enumerate(operands):
                for site in self._owners(weight):
                    for x in operands[:i] + operands[i + 1 :]:
                        self._deliver(site, weight, x)
        return func(*args, **(kwargs or {}))

    def _grouped(self, x: Tensor, weight: Tensor, ends: Tensor | None) -> None:
        """Every expert sees its own run of tokens."""
        for site in self._owners(weight):
            if ends is None or site.expert is None:
                self._deliver(site, weight, x)
            else:
                start = int(ends[site.expert - 1]) if site.expert else 0
                self._report(site, x[start : int(ends[site.expert])])

    def _owners(self, weight: Tensor) -> list[Site]:
        spans = self._spans.get(weight.untyped_storage().data_ptr())
        if not spans:
            return []
        lo = int(weight.storage_offset())
        hi = lo + _extent(weight)
        return [site for start, end, site in spans if start >= lo and end <= hi]

    def _deliver(self, site: Site, weight: Tensor, x: Tensor) -> None:
        if weight.dim() == 3 and x.dim() == 3 and site.expert is not None and x.shape[0] == weight.shape[0]:
            x = x[site.expert]
        if x.shape[-1] == site.shape[1]:
            self._report(site, x.reshape(-1, x.shape[-1]))
        elif x.dim() == 2 and x.shape[0] == site.shape[1]:  # weight @ x: tokens are columns
            self._report(site, x.T)


def _extent(x: Tensor) -> int:
    return 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
