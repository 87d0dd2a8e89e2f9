"""The four slots of a term encoder: pooling over tokens, activation, normalisation, importance. Each is a registered frozen dataclass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparseworks.core.config import NOUNS
from sparseworks.core.errors import BudgetError
from sparseworks.core.registry import Registry

POOLINGS: Registry[type[TermPooling]] = Registry("term pooling", "sparseworks.retrieval")
SATURATIONS: Registry[type[Saturation]] = Registry("saturation", "sparseworks.retrieval")
TERM_NORMS: Registry[type[TermNorm]] = Registry("term normalisation", "sparseworks.retrieval")
IMPORTANCES: Registry[type[TermImportance]] = Registry("term importance", "sparseworks.retrieval")


# -- pooling ------------------------------------------------------------------------------------------------------


class TermPooling:
    """Scores of every token made one vector.

    Attributes:
        copies: how often the model reads the text; only the last copy is pooled.
        special: whether special tokens ([CLS], [SEP]) are pooled too; with several copies they never are.
    """

    copies: ClassVar[int] = 1
    special: bool = True

    def __call__(
        self,
        scores: Float[Tensor, "texts tokens width"],
        mask: Bool[Tensor, "texts tokens"],
        activate: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "texts width"]:
        """Activated and pooled over the tokens of the mask; a text without tokens has zeros."""
        raise NotImplementedError


class _Largest(TermPooling):
    def __call__(self, scores: Tensor, mask: Tensor, activate: Callable[[Tensor], Tensor]) -> Tensor:
        """As in the formula."""
        best = scores.masked_fill(~mask.unsqueeze(2), -torch.inf).amax(1)
        return torch.where(best.isneginf(), 0.0, activate(best.clamp(min=torch.finfo(best.dtype).min)))


@POOLINGS.register("max")
@dataclass(frozen=True)
class MaxPooling(_Largest):
    """w_j = max_i f(h_ij), as f(max_i h_ij): every saturation rises. SPLADE v2 (Formal et al., 2021, arXiv 2109.10086).

    SPLADE pools special tokens too, the unified framework (arXiv 2303.13416) does not.
    """

    special: bool = True


@POOLINGS.register("sum")
@dataclass(frozen=True)
class SumPooling(TermPooling):
    """w_j = sum_i f(h_ij), the first SPLADE (Formal et al., 2021, arXiv 2107.05720)."""

    def __call__(self, scores: Tensor, mask: Tensor, activate: Callable[[Tensor], Tensor]) -> Tensor:
        """As in the formula."""
        return (activate(scores) * mask.unsqueeze(2)).sum(1)


@POOLINGS.register("first")
@dataclass(frozen=True)
class FirstPooling(TermPooling):
    """w_j = f(h_1j): the first token of the text, [CLS] in BERT (the clsMLM head)."""

    def __call__(self, scores: Tensor, mask: Tensor, activate: Callable[[Tensor], Tensor]) -> Tensor:
        """As in the formula."""
        return torch.where(mask.any(1, keepdim=True), activate(scores[:, 0]), 0.0)


@POOLINGS.register("last")
@dataclass(frozen=True)
class LastPooling(TermPooling):
    """w_j = f(h_nj): the last token of the text, which in a causal model has read all others (Song et al., 2025, arXiv 2510.18527)."""

    def __call__(self, scores: Tensor, mask: Tensor, activate: Callable[[Tensor], Tensor]) -> Tensor:
        """As in the formula."""
        return torch.where(mask.any(1, keepdim=True), activate(last_of(scores, mask)), 0.0)


@POOLINGS.register("echo")
@dataclass(frozen=True)
class EchoPooling(_Largest):
    """The maximum over the second copy of a text that is fed twice: there every token of a causal model has read the whole text.

    Source: Springer et al., 2024 (arXiv 2402.15449); as a term encoder: Doshi et al., 2024 (arXiv 2408.11119).
    """

    copies: ClassVar[int] = 2


# -- activation -----------------------------------------------------------------------------------------------------


class Saturation:
    """`saturation(h)`: elementwise and rising."""

    def __call__(self, h: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """As in the class's formula."""
        raise NotImplementedError


@SATURATIONS.register("relu")
@dataclass(frozen=True)
class Relu(Saturation):
    """max(h, 0)."""

    def __call__(self, h: Tensor) -> Tensor:
        """As in the formula."""
        return h.relu()


@SATURATIONS.register("log1p")
@dataclass(frozen=True)
class Log1p(Saturation):
    """log(1 + max(h, 0))."""

    def __call__(self, h: Tensor) -> Tensor:
        """As in the formula."""
        return h.relu().log1p()


@SATURATIONS.register("log1p_twice")
@dataclass(frozen=True)
class Log1pTwice(Saturation):
    """log(1 + log(1 + max(h, 0))): nearer to an indicator of presence (arXiv 2504.14839)."""

    def __call__(self, h: Tensor) -> Tensor:
        """As in the formula."""
        return h.relu().log1p().log1p()


@SATURATIONS.register("soft_threshold")
@dataclass(frozen=True)
class SoftThreshold(Saturation):
    """sgn(h) max(|h| - by, 0): codes with a sign (Paria et al., 2020, arXiv 2004.05665)."""

    by: float = 1.0

    def __post_init__(self):
        if not self.by >= 0:
            raise BudgetError(f"A threshold is a number >= 0, got {self.by!r}.")

    def __call__(self, h: Tensor) -> Tensor:
        """As in the formula."""
        return F.softshrink(h, self.by)


# -- normalisation --------------------------------------------------------------------------------------------------


class TermNorm:
    """`norm(w)`: rows brought to one scale; zero rows stay."""

    def __call__(self, w: Float[Tensor, "texts width"]) -> Float[Tensor, "texts width"]:
        """As in the class's formula."""
        raise NotImplementedError


@TERM_NORMS.register("none")
@dataclass(frozen=True)
class NoNorm(TermNorm):
    """w as it is."""

    def __call__(self, w: Tensor) -> Tensor:
        """As it is."""
        return w


@TERM_NORMS.register("l2")
@dataclass(frozen=True)
class L2Norm(TermNorm):
    """w / ||w||_2."""

    def __call__(self, w: Tensor) -> Tensor:
        """As in the formula."""
        return F.normalize(w, dim=-1)


# -- importance -----------------------------------------------------------------------------------------------------


class TermImportance:
    """What weights are multiplied with, or what is added. A dataclass holds the options, `build` makes the parameters."""

    needs_idf: ClassVar[bool] = False
    needs_hidden: ClassVar[bool] = False

    def build(self, width: int, hidden: int, idf: Float[Tensor, " width"] | None) -> nn.Module | None:
        """A module (w, ids, mask, hidden) -> w, or None where nothing is done."""
        return None


@IMPORTANCES.register("none")
@dataclass(frozen=True)
class NoImportance(TermImportance):
    """w as it is."""


@IMPORTANCES.register("idf")
@dataclass(frozen=True)
class Idf(TermImportance):
    """w_j idf_j with a fixed table."""

    needs_idf: ClassVar[bool] = True

    def build(self, width: int, hidden: int, idf: Tensor | None) -> nn.Module:
        """The table as a buffer."""
        return _Table(_given(idf), learned=False)


@IMPORTANCES.register("learned")
@dataclass(frozen=True)
class LearnedTable(TermImportance):
    """w_j max(t_j, 0) with a learned table that begins at the idf, or at 1 if `from_idf` is False."""

    from_idf: bool = True

    def build(self, width: int, hidden: int, idf: Tensor | None) -> nn.Module:
        """The table as a parameter."""
        return _Table(_given(idf).clone() if self.from_idf else torch.ones(width), learned=True)


@IMPORTANCES.register("literal_residual")
@dataclass(frozen=True)
class LiteralResidual(TermImportance):
    """w_j + 1{j in text} (max_v w'_v - w'_j), w' = A log(1 + max(h_n, 0)) + a with the last hidden state h_n: literal terms are made good.

    Source: Song et al., 2025 (arXiv 2510.18527), literal residual network.
    """

    needs_hidden: ClassVar[bool] = True

    def build(self, width: int, hidden: int, idf: Tensor | None) -> nn.Module:
        """The map from hidden states to terms."""
        return _Literal(hidden, width)


class _Table(nn.Module):
    def __init__(self, table: Tensor, learned: bool):
        super().__init__()
        self.table = nn.Parameter(table.clone(), requires_grad=learned)

    def forward(self, w: Tensor, ids: Tensor, mask: Tensor, hidden: Tensor | None) -> Tensor:
        return w * self.table.relu()


class _Literal(nn.Module):
    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.head = nn.Linear(hidden, width)

    def forward(self, w: Tensor, ids: Tensor, mask: Tensor, hidden: Tensor) -> Tensor:
        others = self.head(last_of(hidden, mask).relu().log1p())
        there = on_terms(torch.ones_like(ids, dtype=w.dtype), ids, mask, w.shape[1])
        return w + there * (others.amax(1, keepdim=True) - others)


def last_of(
    states: Float[Tensor, "texts tokens width"], mask: Bool[Tensor, "texts tokens"]
) -> Float[Tensor, "texts width"]:
    """The state of the last token of the mask; of a text without tokens, of the first."""
    at = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), 0).amax(1)
    return states[torch.arange(len(states), device=states.device), at]


def on_terms(
    scores: Float[Tensor, "texts tokens"],
    ids: Int[Tensor, "texts tokens"],
    mask: Bool[Tensor, "texts tokens"],
    width: int,
    reduce: str = "amax",
) -> Float[Tensor, "texts width"]:
    """Scores >= 0 of tokens as weights of their terms; of a term that occurs twice the larger, or the sum."""
    out = scores.new_zeros(len(scores), width)
    return out.scatter_reduce(1, ids, torch.where(mask, scores, 0.0), reduce)


def _given(idf: Tensor | None) -> Tensor:
    if idf is None:
        raise BudgetError("This importance begins at idf: give `TermEncoder(idf=...)`, e.g. from `idf_of(texts, ...)`.")
    return idf


NOUNS["term_pooling"] = (TermPooling, POOLINGS)
NOUNS["saturation"] = (Saturation, SATURATIONS)
NOUNS["term_norm"] = (TermNorm, TERM_NORMS)
NOUNS["term_importance"] = (TermImportance, IMPORTANCES)
