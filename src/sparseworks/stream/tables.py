"""Embedding tables that lie on disk: only the rows that are looked up are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparseworks.stream.raw import Place, read_rows

Idle = Callable[[], bool]


def read_by_rows(module: nn.Embedding, place: Place, changed: Idle) -> Callable[[], None]:
    """Let `module` read what it looks up from the file; how to undo that.

    A table mapped into memory would stay there nearly whole: a few thousand rows anywhere bring their neighbours with them.
    What a subclass does around the look-up (scaling, positions from masks) stays as it is.

    Args:
        place: where the table lies, in the type of the module's weight.
        changed: whether the weight in memory is no longer that of the file; it is then used itself.
    """
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if changed():
            return own(*args, **kwargs)
        with _Lookup(module.weight, place):
            return own(*args, **kwargs)

    module.forward = forward
    return lambda: module.__dict__.pop("forward", None)


class _Lookup(TorchFunctionMode):
    def __init__(self, weight: Tensor, place: Place):
        super().__init__()
        self.weight, self.place = weight, place

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is F.embedding and len(args) > 1 and args[1] is self.weight:
            found = self._rows(args[0])
            return func(*args, **given) if found is None else found
        return func(*args, **given)

    def _rows(self, ids: Int[Tensor, "*tokens"]) -> Float[Tensor, "*tokens width"] | None:
        """None where an index is out of range: torch says so best itself."""
        rows, at = ids.unique(return_inverse=True)
        if not rows.numel() or int(rows[0]) < 0 or int(rows[-1]) >= self.place.shape[0]:
            return None
        return F.embedding(at, read_rows(self.place, rows.cpu(), self.weight.dtype))
