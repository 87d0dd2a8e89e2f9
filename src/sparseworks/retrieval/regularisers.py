"""What makes term weights sparse while they are trained: l1, FLOPS and its variants, an l0 surrogate, and the ramp of their weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.config import NOUNS
from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.core.registry import Registry
from sparseworks.exec.search import Rows

REGULARISERS: Registry[type[CodeRegulariser]] = Registry("regulariser of codes", "sparseworks.retrieval")


@dataclass(frozen=True)
class CodeRegulariser:
    """weight * R(w) of a batch of codes w (places, n, width): means are taken over n, and over places, or their sum.

    Attributes:
        weight: lambda, at the end of the ramp.
        summed: values of several places in a row are added, so that the penalty grows with them, as the released code of
            inference-free retrievers has it; otherwise their mean, as in SPLADE's and the unified framework's.

    Raises:
        BudgetError: a negative weight.
    """

    needs_idf: ClassVar[bool] = False
    weight: float = 1e-3
    summed: bool = False

    def __post_init__(self):
        if not self.weight >= 0:
            raise BudgetError(f"The weight of a regulariser is a number >= 0, got {self.weight!r}.")

    def __call__(self, w: Float[Tensor, "*groups n width"], idf: Float[Tensor, " width"] | None = None) -> Tensor:
        """R(w) without its weight, a scalar."""
        raise NotImplementedError

    def _over(self, places: Float[Tensor, "*places"]) -> Float[Tensor, ""]:
        return places.sum() if self.summed else places.mean()


@REGULARISERS.register("l1")
@dataclass(frozen=True)
class L1(CodeRegulariser):
    """sum_j mean_i |w_ij|."""

    def __call__(self, w: Tensor, idf: Tensor | None = None) -> Tensor:
        """As in the formula."""
        return self._over(w.abs().sum(-1).mean(-1))


@REGULARISERS.register("flops")
@dataclass(frozen=True)
class Flops(CodeRegulariser):
    """sum_j (mean_i |w_ij|)^2: relaxes the expected multiplications of a dot product, so busy dimensions are pushed down most.

    Source: Paria et al., 2020 (arXiv 2004.05665).
    """

    def __call__(self, w: Tensor, idf: Tensor | None = None) -> Tensor:
        """As in the formula."""
        return self._over(w.abs().mean(-2).square().sum(-1))


@REGULARISERS.register("idf_flops")
@dataclass(frozen=True)
class IdfFlops(CodeRegulariser):
    """sum_j (mean_i |w_ij| / idf_j)^2: frequent terms cost more, rare ones less; idf is scaled to mean 1.

    The recipe of the source, plain FLOPS on w with the idf in the query, is `Flops` beside an `idf` query side; this is the
    same written on w alone, for sides that do without.

    Source: Geng et al., 2024 (arXiv 2411.04403).
    """

    needs_idf: ClassVar[bool] = True

    def __call__(self, w: Tensor, idf: Tensor | None = None) -> Tensor:
        """As in the formula.

        Raises:
            BudgetError: no idf table.
        """
        if idf is None:
            raise BudgetError("This regulariser needs the idf of every term: `train_retriever(..., idf=...)`.")
        return self._over((w.abs().mean(-2) * (idf.mean() / idf.clamp(min=1e-3))).square().sum(-1))


@REGULARISERS.register("masked_flops")
@dataclass(frozen=True)
class MaskedFlops(CodeRegulariser):
    """FLOPS over the codes with more than `above` entries: sum_j (mean_i 1{||w_i||_0 > t} |w_ij|)^2.

    Source: Shen et al., 2025 (arXiv 2504.14839), l0 mask loss; t = 150 as released.
    """

    above: int = 150

    def __call__(self, w: Tensor, idf: Tensor | None = None) -> Tensor:
        """As in the formula."""
        long = (w.detach() != 0).sum(-1, keepdim=True) > self.above
        return self._over((w.abs() * long).mean(-2).square().sum(-1))


@REGULARISERS.register("l0")
@dataclass(frozen=True)
class L0(CodeRegulariser):
    """sum_j mean_i |w_ij| / (|w_ij| + width): counts entries, nearly; the smaller `width`, the more nearly."""

    width: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if not self.width > 0:
            raise BudgetError(f"The width of the l0 surrogate is a number > 0, got {self.width!r}.")

    def __call__(self, w: Tensor, idf: Tensor | None = None) -> Tensor:
        """As in the formula."""
        size = w.abs()
        return self._over((size / (size + self.width)).sum(-1).mean(-1))


def quadratic_ramp(step: int, steps: int) -> float:
    """min(1, (step / steps)^2): what a regulariser's weight is multiplied with; 1 throughout for steps = 0."""
    return 1.0 if steps <= 0 else min(1.0, (step / steps) ** 2)


def expected_flops(w: Float[Tensor, "n width"] | Rows, other: Float[Tensor, "m width"] | Rows | None = None) -> float:
    """sum_j P(w_j != 0) P(v_j != 0): multiplications that a sparse dot product of two codes needs on average; of rows, what they hold.

    Raises:
        ShapeError: codes of different widths.
    """
    p = _share(w)
    q = p if other is None else _share(other)
    if p.shape != q.shape:
        raise ShapeError(f"Codes that are multiplied have one width, got {len(p)} and {len(q)}.")
    return float(torch.dot(p, q))


def _share(w: Tensor | Rows) -> Float[Tensor, " width"]:
    """P(w_j != 0) of every j."""
    if isinstance(w, Rows):
        return torch.bincount(w.indices, minlength=w.width).float() / max(len(w), 1)
    return (w.abs() > 0).float().mean(0)


NOUNS["code_regulariser"] = (CodeRegulariser, REGULARISERS)
