"""Order: the tokens of a call put into another order, so that those that go together lie in one unit."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from sparseworks.attention.clusters import Clusters
from sparseworks.attention.heads import Heads
from sparseworks.core.registry import Registry

ORDERS: Registry[type[Order]] = Registry("order", "sparseworks.attention")


class Order:
    """Register a frozen dataclass. For calls in which every query sees every key; outputs come back in the order of the queries."""

    registered_name: ClassVar[str] = ""

    def __call__(
        self, heads: Heads
    ) -> tuple[Int[Tensor, "batch heads queries"], Int[Tensor, "batch kv_heads keys"]] | None:
        """Position -> token, of queries and of keys (batch and heads may be 1); None: as they are."""
        raise NotImplementedError

    def cut(self, heads: Heads) -> Clusters | None:
        """What it has put side by side at the last call, for methods whose unit is a whole cluster; None: it makes no clusters."""
        return None
