"""Rest: what stands in for the units that are not computed (the repair of attention)."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sparseworks.attention.heads import Heads
from sparseworks.attention.kept import Kept, Output
from sparseworks.core.registry import Registry

RESTS: Registry[type[Rest]] = Registry("rest", "sparseworks.attention")


class Rest:
    """Register a frozen dataclass. The default leaves what was not kept out of the softmax.

    Attributes:
        uses_scores: whether it reads the scores of units, those of the last selection, in `heads.memory["scores"]`.
        learns: whether calls that the schedule leaves dense teach it, see `after_dense`.
    """

    registered_name: ClassVar[str] = ""
    uses_scores: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    def __call__(self, heads: Heads, kept: Kept, found: Output) -> Output:
        """The output and log-sum-exp over the kept units -> those of the whole map, approximately."""
        raise NotImplementedError

    def cost(self, heads: Heads, kept: Kept) -> Float[Tensor, "batch heads"]:
        """What this call computes in pairs, of every head; it counts in the density that is reported.

        A pair is a product of a query with a key and of its weight with a value, 2 d multiply-adds; other products are converted
        by that. What key heads compute once is shared by the heads of their group. Sums and means of tokens are not counted.
        """
        raise NotImplementedError

    def after_dense(self, heads: Heads, kept: Kept, found: Output, dense: Output) -> None:
        """What a dense call teaches, kept in `heads.memory`; called at calls that the schedule leaves dense if it `learns`.

        kept, found: units that the method would have computed, and attention over them.
        """
