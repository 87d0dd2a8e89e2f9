"""Form: how a weight is written down, as factors instead of one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError
from sparseworks.core.operator import LinearOperator
from sparseworks.core.registry import Registry
from sparseworks.core.stats import Stat, Stats

if TYPE_CHECKING:
    from sparseworks.core.method import Method

FORMS: Registry[type[Form]] = Registry("form", "sparseworks.weights")


class Form:
    """What factors a matrix has; `fit` finds them for a given weight, `start` draws them for training from scratch.

    The budget is counted in words: numbers of 16 bits, to which 16 bits of indices count as one. A dense matrix has
    out * in of them, so density d is d * out * in words, and forms of equal density have equal bytes.

    A subclass is a frozen dataclass.

    Attributes:
        needs: statistics that a fit looks at.
        selects: a factor is sparse: the method's score and pattern say which of its entries are kept. Other forms take no
            notice of them.
        sized: the budget decides how large the factors are; otherwise pattern and fields do, and no budget can be given.
    """

    needs: frozenset[type[Stat]] = frozenset()
    selects: ClassVar[bool] = False
    sized: ClassVar[bool] = True
    registered_name: ClassVar[str]

    def fit(self, weight: Float[Tensor, "out in"], stats: Stats, method: Method, words: int) -> LinearOperator:
        """The operator closest to `weight` within `words`, in float32 (float64 stays); without bias.

        Raises:
            BudgetError: the smallest such operator is larger.
            ShapeError: the factors do not divide the matrix.
            MissingStatError: a statistic in `needs` was not gathered.
        """
        raise BudgetError(
            f"Form {self.registered_name!r} is trained from scratch and cannot be fitted to a weight; use `start`."
        )

    def check(self, shape: tuple[int, int], method: Method, words: int) -> None:
        """Refuse what `fit` would refuse, from the shape alone: a model is checked before any of its layers is changed.

        Raises:
            BudgetError: the smallest operator is larger than `words`.
            ShapeError: the factors do not divide the matrix.
            PatternError: the form cannot hold the method's pattern.
        """

    @property
    def together(self) -> bool:
        """Whether layers that read the same inputs are fitted by one call of `fit_together`, and share factors."""
        return False

    def fit_together(
        self, weights: Sequence[Float[Tensor, "out in"]], stats: Stats, method: Method, words: int
    ) -> list[LinearOperator]:
        """The operators of several weights with the same inputs, within `words` for all of them."""
        raise NotImplementedError

    def start(
        self, shape: tuple[int, int], method: Method, words: int, generator: torch.Generator | None = None
    ) -> LinearOperator:
        """A random operator of `shape` (out, in) to be trained, within `words`; float32.

        Raises:
            BudgetError: the smallest such operator is larger, or this form is only fitted.
            ShapeError: the factors do not divide the matrix.
        """
        raise BudgetError(f"Form {self.registered_name!r} is fitted to trained weights and has no start of its own.")
