"""What turns tokens into term weights: presence, a scalar a token, or the logits of a language model; and a side: a head with its slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparseworks.core.config import NOUNS
from sparseworks.core.errors import BudgetError
from sparseworks.core.registry import Registry
from sparseworks.core.select import top
from sparseworks.retrieval.encoders.slots import (
    Log1p,
    MaxPooling,
    NoImportance,
    NoNorm,
    Saturation,
    SumPooling,
    TermImportance,
    TermNorm,
    TermPooling,
    on_terms,
)

TERM_HEADS: Registry[type[TermHead]] = Registry("term head", "sparseworks.retrieval")
TERM_SIDES: Registry[type[TermSide]] = Registry("side of a term encoder", "sparseworks.retrieval")


@dataclass(frozen=True)
class Read:
    """A batch that a model has read.

    Attributes:
        ids: tokens.
        mask: those that are pooled: of the text, or of its second copy.
        hidden: last hidden states; None where the head does without a model.
        logits: of the language-model head, likewise.
        width: terms.
    """

    ids: Int[Tensor, "texts tokens"]
    mask: Bool[Tensor, "texts tokens"]
    width: int
    hidden: Float[Tensor, "texts tokens hidden"] | None = None
    logits: Float[Tensor, "texts tokens width"] | None = None


class TermHead:
    """Tokens to term weights; a dataclass holds options, `build` makes parameters."""

    reads: ClassVar[bool] = True
    """Whether it needs the model at all."""
    expands: ClassVar[bool] = False
    """Whether texts are expanded by the encoder's `expand` before they are read."""

    def build(self, hidden: int) -> nn.Module | None:
        """Parameters of the head, if it has any."""
        return None

    def __call__(
        self, read: Read, pooling: TermPooling, activate: Saturation, own: nn.Module | None
    ) -> Float[Tensor, "texts width"]:
        """Weights of all terms."""
        raise NotImplementedError


@TERM_HEADS.register("binary")
@dataclass(frozen=True)
class Binary(TermHead):
    """w_j = 1{j in text}: with a table of importances this is an inference-free side."""

    reads: ClassVar[bool] = False

    def __call__(self, read: Read, pooling: TermPooling, activate: Saturation, own: nn.Module | None) -> Tensor:
        """As in the formula."""
        return on_terms(torch.ones(read.ids.shape, device=read.ids.device), read.ids, read.mask, read.width)


@TERM_HEADS.register("mlp")
@dataclass(frozen=True)
class Mlp(TermHead):
    """w_j = max (or sum) over i with x_i = j of f(u h_i + b), for the terms of the text only: uniCOIL, DeepCT.

    Source: Lin and Ma, 2021 (arXiv 2106.14807).
    """

    def build(self, hidden: int) -> nn.Module:
        """u, and b = 1 at the start, so that no term is dead before it was trained."""
        made = nn.Linear(hidden, 1)
        nn.init.ones_(made.bias)
        return made

    def __call__(self, read: Read, pooling: TermPooling, activate: Saturation, own: nn.Module | None) -> Tensor:
        """As in the formula."""
        assert own is not None and read.hidden is not None
        reduce = "sum" if isinstance(pooling, SumPooling) else "amax"
        return on_terms(activate(own(read.hidden).squeeze(2).relu()), read.ids, read.mask, read.width, reduce)


@TERM_HEADS.register("exp_mlp")
@dataclass(frozen=True)
class ExpMlp(Mlp):
    """`mlp` on a text that was expanded from outside: doc2query, TILDE (`TermEncoder(expand=...)`)."""

    expands: ClassVar[bool] = True


@TERM_HEADS.register("mlm")
@dataclass(frozen=True)
class Mlm(TermHead):
    """w_j = pool_i f(H_ij) with the logits H of a masked or causal language model: SPLADE; pooling `first` is clsMLM."""

    def __call__(self, read: Read, pooling: TermPooling, activate: Saturation, own: nn.Module | None) -> Tensor:
        """As in the formula."""
        assert read.logits is not None
        return pooling(read.logits, read.mask, activate)


_MAX, _LOG, _NO_NORM, _NO_IMPORTANCE = MaxPooling(), Log1p(), NoNorm(), NoImportance()


@TERM_SIDES.register("side")
@dataclass(frozen=True)
class TermSide:
    """How one side, queries or documents, becomes term weights: head, pooling, activation, importance, window, normalisation, in this order.

    Attributes:
        head: what scores terms.
        pooling, activation, normalise, importance: the four slots.
        window: only the best so many terms of a text pass, with their gradients (lexical focusing window, arXiv 2510.18527);
            None: all. It is fixed: one that shrinks gained its authors nothing.

    Raises:
        BudgetError: a window below 1.
    """

    head: TermHead
    pooling: TermPooling = _MAX
    activation: Saturation = _LOG
    normalise: TermNorm = _NO_NORM
    importance: TermImportance = _NO_IMPORTANCE
    window: int | None = None

    def __post_init__(self):
        if self.window is not None and (type(self.window) is not int or self.window < 1):
            raise BudgetError(f"A window holds at least one term, got {self.window!r}.")

    @classmethod
    def example(cls) -> TermSide:
        """A side that expands, for tests of whatever is registered."""
        return cls(Mlm())

    @property
    def reads(self) -> bool:
        """Whether the model runs; a side that does not is a look-up."""
        return self.head.reads or self.importance.needs_hidden

    def weigh(self, read: Read, head: nn.Module | None, importance: nn.Module | None) -> Float[Tensor, "texts width"]:
        """Term weights of a batch before window and normalisation: what regularisers see."""
        w = self.head(read, self.pooling, self.activation, head)
        return w if importance is None else importance(w, read.ids, read.mask, read.hidden)

    def focus(self, w: Float[Tensor, "texts width"]) -> Float[Tensor, "texts width"]:
        """Weights within the window, normalised."""
        if self.window is not None and self.window < w.shape[1]:
            w = w * top(w.detach().abs(), self.window)
        return self.normalise(w)


SPLADE_SIDE = TermSide(Mlm())
"""Logits, maximum, one logarithm."""

NOUNS["term_head"] = (TermHead, TERM_HEADS)
NOUNS["term_side"] = (TermSide, TERM_SIDES)
